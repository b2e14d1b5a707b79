//! The folder that is served. Nothing outside it can be opened, whatever a path or a link in it says: cap-std resolves each
//! step below the folder's own descriptor (on Linux by openat2(2) with `RESOLVE_BENEATH`).

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cap_std::fs::Dir;

/// What a folder is asked for when it is itself the target.
const INDEX: &str = "index.html";

/// A folder whose files may be served.
#[derive(Clone)]
pub(crate) struct Folder(Arc<Dir>);

/// A file that was found.
pub(crate) struct Found {
    pub(crate) file: Arc<File>,
    pub(crate) length: u64,
    /// In whole seconds, as HTTP counts.
    pub(crate) modified: SystemTime,
    pub(crate) etag: String,
    pub(crate) content_type: &'static str,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(Dir::open_ambient_dir(path, cap_std::ambient_authority())?)))
    }

    /// Opens a file by its path below the folder; of a folder its index. `None` for all that is no file, is not
    /// readable, or leads outside.
    ///
    /// This blocks while the disk is asked: well for local files, which the kernel mostly has in memory.
    pub(crate) fn find(&self, path: &str) -> Option<Found> {
        // Looked at before it is opened: opening a pipe would wait for its writer.
        let root = if path.is_empty() { "." } else { path };
        let mut path = root.to_owned();
        let mut metadata = self.0.metadata(&path).ok()?;
        if metadata.is_dir() {
            path = format!("{path}/{INDEX}");
            metadata = self.0.metadata(&path).ok()?;
        }
        if !metadata.is_file() {
            return None;
        }
        let file = self.0.open(&path).ok()?.into_std();
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let since = metadata.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Found {
            file: Arc::new(file),
            length: metadata.len(),
            modified: UNIX_EPOCH + Duration::from_secs(since.as_secs()),
            etag: format!("\"{:x}-{:x}\"", metadata.len(), since.as_nanos()),
            content_type: content_type(&path),
        })
    }
}

/// The media type by the extension of a name. What is not known is bytes, which no browser runs.
fn content_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match extension.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" | "log" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "application/xml",
        "json" => "application/json",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_the_extension() {
        assert_eq!(content_type("a/b.HTML"), "text/html; charset=utf-8");
        assert_eq!(content_type("a.tar.gz"), "application/gzip");
        assert_eq!(content_type("folder.png/file"), "application/octet-stream");
        assert_eq!(content_type(""), "application/octet-stream");
    }
}
