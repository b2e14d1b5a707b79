//! Blanks comments and literals of Rust, so that a search finds only code.

/// `text` with spaces in place of comments and of what strings and characters hold. Line ends stay.
pub(super) fn mask(text: &str) -> String {
    let mut masker = Masker { bytes: text.as_bytes(), at: 0, out: Vec::with_capacity(text.len()) };
    while masker.at < masker.bytes.len() {
        masker.step();
    }
    // Whole characters were blanked byte by byte, or copied.
    String::from_utf8_lossy(&masker.out).into_owned()
}

struct Masker<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<u8>,
}

impl Masker<'_> {
    fn step(&mut self) {
        let rest = &self.bytes[self.at..];
        if rest.starts_with(b"//") {
            self.blank(rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
        } else if rest.starts_with(b"/*") {
            self.blank(block_comment(rest));
        } else if let Some(length) = self.raw_string() {
            self.blank(length);
        } else if rest[0] == b'"' {
            self.blank(quoted(rest));
        } else if let Some(length) = character(rest) {
            self.blank(length);
        } else {
            self.out.push(rest[0]);
            self.at += 1;
        }
    }

    fn blank(&mut self, length: usize) {
        let length = length.min(self.bytes.len() - self.at);
        let blanked =
            self.bytes[self.at..self.at + length].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' });
        self.out.extend(blanked);
        self.at += length;
    }

    /// Length of the raw string (`r"…"`, `br#"…"#`, `cr"…"`) that begins here, if one does.
    fn raw_string(&self) -> Option<usize> {
        if self.at > 0 && is_word(self.bytes[self.at - 1]) {
            return None;
        }
        let rest = &self.bytes[self.at..];
        let prefix = [&b"r"[..], b"br", b"cr"].into_iter().find(|prefix| rest.starts_with(prefix))?.len();
        let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
        let begin = prefix + hashes;
        if rest.get(begin) != Some(&b'"') {
            return None;
        }
        let mut end = vec![b'"'];
        end.resize(1 + hashes, b'#');
        let length = rest[begin + 1..].windows(end.len()).position(|window| window == end);
        Some(length.map_or(rest.len(), |length| begin + 1 + length + end.len()))
    }
}

pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// Length of the block comment at the beginning. They nest.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of the string at the beginning.
fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of the character literal at the beginning, unless that is a lifetime or something else.
fn character(rest: &[u8]) -> Option<usize> {
    if rest[0] != b'\'' {
        return None;
    }
    if rest.get(1) == Some(&b'\\') {
        let end = rest.iter().skip(3).position(|byte| *byte == b'\'')?;
        return Some(3 + end + 1);
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(5)]);
    let width = match text {
        Ok(text) => text.chars().next()?.len_utf8(),
        Err(error) if error.valid_up_to() > 0 => {
            std::str::from_utf8(&rest[1..=error.valid_up_to()]).ok()?.chars().next()?.len_utf8()
        }
        Err(_) => return None,
    };
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_comments_and_literals_and_nothing_else() {
        // Runs of spaces count as one here.
        let cases = [
            ("let a = 1; // unsafe", "let a = 1;"),
            ("a /* x /* y */ z */ b", "a b"),
            (r#"f("unsafe \" x", b)"#, "f( , b)"),
            (r##"f(r#"a " b"#, c)"##, "f( , c)"),
            (r"f(r'x', 'u', '\'', '\u{1F600}', b'x', z)", "f(r , , , , b , z)"),
            ("fn f<'a>(x: &'a str) -> &'a str", "fn f<'a>(x: &'a str) -> &'a str"),
            ("let r#type = 'é'; x", "let r#type = ; x"),
            ("for_\"x\" y", "for_ y"),
            ("\"two\nlines\" x", "x"),
            ("x \"never ends", "x"),
        ];
        for (text, expected) in cases {
            let masked = mask(text);
            assert_eq!(masked.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{text}");
            assert_eq!((masked.len(), masked.lines().count()), (text.len(), text.lines().count()), "{text}");
        }
    }
}
