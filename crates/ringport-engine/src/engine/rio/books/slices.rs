//! Slices of equal size, in chunks that come and go.

/// A slice: which chunk, and which part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SliceId {
    pub(crate) chunk: u32,
    pub(crate) index: u32,
}

/// Who has which slice. The one given back last is taken first, from the first chunk that has any: so the later chunks run
/// empty when connections become fewer.
#[derive(Debug)]
pub(crate) struct Slices {
    per_chunk: u32,
    chunks: Vec<Option<Chunk>>,
}

#[derive(Debug)]
struct Chunk {
    free: Vec<u32>,
}

impl Slices {
    /// No chunk yet.
    pub(crate) fn new(per_chunk: u32) -> Self {
        Self { per_chunk, chunks: Vec::new() }
    }

    /// Takes a slice. `None` when a chunk has to be added first.
    pub(crate) fn take(&mut self) -> Option<SliceId> {
        let chunks = self.chunks.iter_mut().enumerate();
        let mut chunks = chunks.filter_map(|(number, chunk)| Some((number, chunk.as_mut()?)));
        chunks.find_map(|(number, chunk)| Some(SliceId { chunk: number as u32, index: chunk.free.pop()? }))
    }

    /// Adds a chunk and says its number: the lowest that is free.
    pub(crate) fn add(&mut self) -> u32 {
        let chunk = Some(Chunk { free: (0..self.per_chunk).rev().collect() });
        match self.chunks.iter().position(Option::is_none) {
            Some(number) => {
                self.chunks[number] = chunk;
                number as u32
            }
            None => {
                self.chunks.push(chunk);
                self.chunks.len() as u32 - 1
            }
        }
    }

    /// Gives a slice back. Returns the chunk if none of its slices is in use any more and another chunk is as empty: it is
    /// gone then, and its memory may go, too. One empty chunk stays for the next connections.
    pub(crate) fn give_back(&mut self, slice: SliceId) -> Option<u32> {
        let per_chunk = self.per_chunk as usize;
        let is_empty = |chunk: &Option<Chunk>| chunk.as_ref().is_some_and(|chunk| chunk.free.len() == per_chunk);
        let chunk = self.chunks.get_mut(slice.chunk as usize).and_then(Option::as_mut);
        let chunk = chunk.expect("a slice in use lies in a chunk");
        debug_assert!(!chunk.free.contains(&slice.index), "a slice is given back twice");
        chunk.free.push(slice.index);
        let empty = chunk.free.len() == per_chunk && self.chunks.iter().filter(|chunk| is_empty(chunk)).count() > 1;
        empty.then(|| {
            self.chunks[slice.chunk as usize] = None;
            slice.chunk
        })
    }
}
