//! Random requests: what they ask for, what is wrong with them, and how they are cut into descriptors.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;

use crate::common::{Random, SECTOR_BYTES, pattern};
use crate::oracle::Shape;
use crate::ring::{Batch, DATA_BASE, DATA_BORDER, DATA_BYTES};

/// Most data in a request, in blocks.
const MOST_BLOCKS: u64 = 8;
/// Most blocks in a range to be discarded or zeroed: with 512-byte blocks some pages are covered in part.
const MOST_CLEARED_BLOCKS: u64 = 40;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Where the upper buffers begin in the data memory.
const UPPER: usize = DATA_BORDER + (128 << 10);

/// A request before it is cut into descriptors.
#[derive(Debug, Clone)]
pub struct Request {
    /// For messages.
    pub what: &'static str,
    kind: u32,
    sector: u64,
    header_bytes: usize,
    /// What follows the header.
    readable: Vec<u8>,
    /// Space for data, without the status byte.
    writable_bytes: usize,
    /// One of the descriptors is empty.
    empty_descriptor: bool,
}

impl Request {
    fn new(what: &'static str, kind: u32, sector: u64) -> Self {
        let (readable, writable_bytes) = (Vec::new(), 0);
        Self { what, kind, sector, header_bytes: 16, readable, writable_bytes, empty_descriptor: false }
    }

    fn readable(self, readable: Vec<u8>) -> Self {
        Self { readable, ..self }
    }

    fn writable(self, writable_bytes: usize) -> Self {
        Self { writable_bytes, ..self }
    }

    /// The bytes of the device-readable part.
    fn readable_part(&self, random: &mut Random) -> Vec<u8> {
        // The reserved field is garbage: nothing may depend on it.
        let reserved = (random.next() as u32).to_le_bytes();
        let mut bytes = [&self.kind.to_le_bytes()[..], &reserved, &self.sector.to_le_bytes()].concat();
        bytes.truncate(self.header_bytes);
        bytes.extend(&self.readable);
        bytes
    }

    /// One line for a failure's message.
    pub fn summary(&self) -> String {
        let Self { what, kind, sector, readable, writable_bytes, .. } = self;
        format!(
            "{what}: type {kind}, sector {sector}, {} bytes to, {writable_bytes} from the device",
            readable.len()
        )
    }
}

/// Random requests for a disk of a given shape.
#[derive(Debug)]
pub struct Stream {
    random: Random,
    shape: Shape,
    /// What the data memory holds where no request put something.
    background: Vec<u8>,
}

impl Stream {
    /// The stream that belongs to `seed`.
    pub fn new(seed: u64, shape: Shape) -> Self {
        let background = pattern(seed, DATA_BYTES);
        Self { random: Random::new(seed), shape, background }
    }

    fn request(&mut self) -> Request {
        let mut request = match self.random.below(25) {
            0..=4 => self.read("read"),
            5..=9 => self.write("write"),
            10 => Request::new("flush", VIRTIO_BLK_T_FLUSH, self.random.next()),
            11 => self.get_id(),
            12..=14 => self.clear("discard or write zeroes"),
            15 => self.wrong_length(),
            16 => self.wrong_sector(),
            17 => self.unknown_type(),
            18 => self.wrong_direction(),
            19 => self.short_header(),
            20 => self.wrong_payload_size(),
            21 => self.wrong_flags(),
            22 => self.wrong_range(),
            23 => self.surplus(),
            _ => Request { empty_descriptor: true, ..self.read_or_write("with an empty descriptor") },
        };
        // Empty descriptors are wrong whatever the request is.
        request.empty_descriptor |= self.random.one_in(100);
        request
    }

    fn block_bytes(&self) -> usize {
        self.shape.block_sectors as usize * SECTOR_BYTES
    }

    /// A range inside the disk: sector and length in bytes. One in eight is empty.
    fn range(&mut self, most_blocks: u64) -> (u64, usize) {
        let blocks = self.shape.capacity_sectors / self.shape.block_sectors;
        let count = if self.random.one_in(8) { 0 } else { 1 + self.random.below(most_blocks) };
        let first = match self.random.below(8) {
            0 => blocks - count.max(1),
            // Requests often meet.
            1..=4 => self.random.below(32),
            _ => self.random.below(blocks - most_blocks),
        };
        (first * self.shape.block_sectors, count as usize * self.block_bytes())
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        pattern(self.random.next(), len)
    }

    fn read(&mut self, what: &'static str) -> Request {
        let (sector, len) = self.range(MOST_BLOCKS);
        Request::new(what, VIRTIO_BLK_T_IN, sector).writable(len)
    }

    fn write(&mut self, what: &'static str) -> Request {
        let (sector, len) = self.range(MOST_BLOCKS);
        Request::new(what, VIRTIO_BLK_T_OUT, sector).readable(self.bytes(len))
    }

    fn read_or_write(&mut self, what: &'static str) -> Request {
        if self.random.one_in(2) { self.read(what) } else { self.write(what) }
    }

    fn get_id(&mut self) -> Request {
        let len = self.random.pick(&[0, 1, 19, 20, 20, 20, 21, 64, 512]);
        Request::new("get id", VIRTIO_BLK_T_GET_ID, self.random.next()).writable(len)
    }

    fn wrong_length(&mut self) -> Request {
        let request = self.read_or_write("length that is not a multiple of the block");
        let extra = 1 + self.random.below(self.block_bytes() as u64 - 1) as usize;
        if request.kind == VIRTIO_BLK_T_IN {
            let len = request.writable_bytes + extra;
            return request.writable(len);
        }
        let len = request.readable.len() + extra;
        request.readable(self.bytes(len))
    }

    /// Out of range, or (4096-byte blocks, which are a hint) between two blocks.
    fn wrong_sector(&mut self) -> Request {
        let capacity = self.shape.capacity_sectors;
        let mut request = self.read_or_write("sector that is out of range or not a block's");
        let sectors = (request.readable.len() + request.writable_bytes) / SECTOR_BYTES;
        let wild = [
            capacity,
            capacity + self.shape.block_sectors,
            u64::MAX,
            u64::MAX - 7,
            1 << 55,
            1 << 63,
            u64::MAX / 512 + 1,
            (u64::MAX / 512 + 1) | self.shape.block_sectors,
        ];
        request.sector = match self.random.below(3) {
            0 if sectors > 0 => capacity - sectors as u64 + self.shape.block_sectors,
            1 if self.shape.block_sectors > 1 => request.sector + 1 + self.random.below(7),
            _ => self.random.pick(&wild),
        };
        request
    }

    fn unknown_type(&mut self) -> Request {
        let secure_erase_and_others =
            [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 16, 24, 255, 1 << 16, 1 << 31, u32::MAX];
        let kind = self.random.pick(&secure_erase_and_others);
        let (readable, writable) = (self.random.below(3) * 512, self.random.below(3) * 512);
        let (sector, _) = self.range(MOST_BLOCKS);
        Request::new("unknown type", kind, sector)
            .readable(self.bytes(readable as usize))
            .writable(writable as usize)
    }

    fn wrong_direction(&mut self) -> Request {
        let extra = 1 + self.random.below(1024) as usize;
        let request = self.read_or_write("data in the wrong direction");
        if request.kind == VIRTIO_BLK_T_IN {
            request.readable(self.bytes(extra))
        } else {
            request.writable(extra)
        }
    }

    /// Data for requests that have no use for them.
    fn surplus(&mut self) -> Request {
        let extra = 1 + self.random.below(600) as usize;
        let what = "surplus data";
        match self.random.below(3) {
            0 => Request::new(what, VIRTIO_BLK_T_FLUSH, 0).readable(self.bytes(extra)).writable(extra),
            1 => self.get_id().readable(self.bytes(extra)),
            _ => self.clear(what).writable(extra),
        }
    }

    fn short_header(&mut self) -> Request {
        let header_bytes = self.random.below(16) as usize;
        Request { header_bytes, readable: Vec::new(), ..self.read("header that is too short") }
    }

    /// DISCARD or WRITE_ZEROES with one range or several.
    fn clear(&mut self, what: &'static str) -> Request {
        let kind = self.random.pick(&[VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES]);
        let most = u64::from(self.most_ranges(kind)).min(64);
        let count = if self.random.one_in(8) { most } else { 1 + self.random.below(most.min(5)) };
        let payload = (0..count).flat_map(|_| self.clear_range(kind)).collect();
        // The sector in the header means nothing.
        Request::new(what, kind, self.random.next()).readable(payload)
    }

    /// One on a read-only disk, which does not know these requests.
    fn most_ranges(&self, kind: u32) -> u32 {
        let limits = if kind == VIRTIO_BLK_T_DISCARD { self.shape.discard } else { self.shape.write_zeroes };
        limits.most_ranges.max(1)
    }

    fn clear_range(&mut self, kind: u32) -> [u8; 16] {
        let (sector, bytes) = self.range(MOST_CLEARED_BLOCKS);
        let flags = if kind == VIRTIO_BLK_T_WRITE_ZEROES { self.random.below(2) as u32 } else { 0 };
        range_bytes(sector, (bytes / SECTOR_BYTES) as u32, flags)
    }

    fn wrong_payload_size(&mut self) -> Request {
        let mut request = self.clear("discard or write zeroes with a payload of a wrong size");
        let too_many = self.most_ranges(request.kind) as usize + 1;
        match self.random.below(3) {
            0 => request.readable.clear(),
            1 if too_many <= 1024 => {
                let kind = request.kind;
                request.readable = (0..too_many).flat_map(|_| self.clear_range(kind)).collect();
            }
            _ => request.readable.truncate(request.readable.len() - 1 - self.random.below(15) as usize),
        }
        request
    }

    fn wrong_flags(&mut self) -> Request {
        let mut request = self.clear("discard or write zeroes with unknown flags");
        let flags = match request.kind {
            VIRTIO_BLK_T_DISCARD => self.random.pick(&[1_u32, 2, 3, 1 << 31]),
            _ => self.random.pick(&[2_u32, 3, 1 << 31]),
        };
        let range = self.any_range(&request);
        request.readable[range + 12..range + 16].copy_from_slice(&flags.to_le_bytes());
        request
    }

    /// Out of range, too long or (4096-byte blocks) not made of whole blocks.
    fn wrong_range(&mut self) -> Request {
        let mut request = self.clear("discard or write zeroes of a wrong range");
        let capacity = self.shape.capacity_sectors;
        let block = self.shape.block_sectors;
        let (sector, sectors) = match self.random.below(6) {
            0 => (capacity, block as u32),
            1 => (0, u32::MAX / block as u32 * block as u32),
            2 => (u64::MAX - block + 1, block as u32),
            3 => (1 << 55, block as u32),
            4 if block > 1 => (1 + self.random.below(block - 1), block as u32),
            _ if block > 1 => (0, 1 + self.random.below(block - 1) as u32),
            _ => (capacity - 1, 2),
        };
        let flags = if request.kind == VIRTIO_BLK_T_WRITE_ZEROES { self.random.below(2) as u32 } else { 0 };
        let range = self.any_range(&request);
        request.readable[range..range + 16].copy_from_slice(&range_bytes(sector, sectors, flags));
        request
    }

    /// Where one of the ranges in a payload begins.
    fn any_range(&mut self, request: &Request) -> usize {
        self.random.below(request.readable.len() as u64 / 16) as usize * 16
    }

    /// A batch for a ring of `queue_size` descriptors, and what is in it.
    pub fn batch(&mut self, queue_size: u16) -> (Batch, Vec<Placed>) {
        let most = 1 + self.random.below(24);
        let mut layout = Layout::new(&mut self.random, queue_size, self.background.clone());
        let mut placed = Vec::new();
        for _ in 0..most {
            let request = self.request();
            match layout.place(&mut self.random, request, self.shape.most_segments) {
                Some(request) => placed.push(request),
                None => break,
            }
        }
        layout.batch.notify_late = self.random.one_in(2);
        (layout.batch, placed)
    }
}

fn range_bytes(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// A request and where its status byte will be.
#[derive(Debug)]
pub struct Placed {
    pub request: Request,
    /// Offset in the data memory.
    pub status: usize,
}

/// A batch that is being laid out.
struct Layout {
    batch: Batch,
    /// Descriptor indices not used yet, in random order.
    free: Vec<u16>,
    /// Where the next buffer goes: from below over the regions' border, or far above it.
    next: [usize; 2],
}

impl Layout {
    fn new(random: &mut Random, queue_size: u16, data: Vec<u8>) -> Self {
        let mut free: Vec<u16> = (0..queue_size).collect();
        for end in (1..free.len()).rev() {
            free.swap(end, random.below(end as u64 + 1) as usize);
        }
        let below_border = DATA_BORDER - random.below(64 << 10) as usize;
        Self { batch: Batch { data, ..Batch::default() }, free, next: [below_border, UPPER] }
    }

    /// Adds a request; `None` when there is no room for it.
    fn place(&mut self, random: &mut Random, request: Request, most_segments: u32) -> Option<Placed> {
        let readable = request.readable_part(random);
        let writable_bytes = request.writable_bytes + 1;
        // Buffers, the gaps between them and an indirect table.
        let room = readable.len() + writable_bytes + 4096;
        if self.next[0] + room > UPPER || self.next[1] + room > DATA_BYTES {
            return None;
        }
        let longest = (most_segments as usize + 2).min(self.free.len()).min(20);
        if longest < 3 {
            return None;
        }
        let most = (longest - usize::from(request.empty_descriptor)) / 2;
        let mut pieces = Vec::new();
        pieces.extend(cut(random, readable.len(), most).into_iter().map(|len| (len, false)));
        pieces.extend(cut(random, writable_bytes, most).into_iter().map(|len| (len, true)));
        if request.empty_descriptor {
            self.insert_empty(random, &mut pieces);
        }

        let mut status = 0;
        let mut source = readable.as_slice();
        let mut chain = Vec::new();
        for (len, is_writable) in pieces {
            let offset = self.reserve(random, len);
            if is_writable {
                // An empty last descriptor does not hold the status.
                if len > 0 {
                    status = offset + len - 1;
                }
            } else {
                let (bytes, rest) = source.split_at(len);
                self.batch.data[offset..offset + len].copy_from_slice(bytes);
                source = rest;
            }
            let flags = if is_writable { WRITE } else { 0 };
            chain.push((DATA_BASE + offset as u64, len as u32, flags));
        }
        self.link(random, &chain);
        Some(Placed { request, status })
    }

    /// The pieces keep their order: what is readable comes first.
    fn insert_empty(&self, random: &mut Random, pieces: &mut Vec<(usize, bool)>) {
        let at = random.below(pieces.len() as u64 + 1) as usize;
        let is_writable = match (at.checked_sub(1).map(|before| pieces[before].1), pieces.get(at)) {
            (Some(true), _) => true,
            (_, Some((_, false))) => false,
            _ => random.one_in(2),
        };
        pieces.insert(at, (0, is_writable));
    }

    /// Takes space for a buffer, at any alignment, with a gap before the next.
    fn reserve(&mut self, random: &mut Random, len: usize) -> usize {
        let next = &mut self.next[random.below(2) as usize];
        let offset = *next + random.below(33) as usize;
        *next = offset + len;
        offset
    }

    /// Writes the descriptors: all in the ring's table, all in an indirect one, or the last ones in it.
    fn link(&mut self, random: &mut Random, chain: &[(u64, u32, u16)]) {
        let direct = match random.below(3) {
            0 => chain.len(),
            1 => 0,
            _ => random.below(chain.len() as u64) as usize,
        };
        let table = &chain[direct..];
        let entries = direct + usize::from(!table.is_empty());
        let indices = self.free.split_off(self.free.len() - entries);
        for (place, &(addr, len, flags)) in chain[..direct].iter().enumerate() {
            let descriptor = match indices.get(place + 1) {
                Some(&next) => Descriptor::new(addr, len, flags | NEXT, next),
                None => Descriptor::new(addr, len, flags, random.next() as u16),
            };
            self.batch.descriptors.push((indices[place], descriptor));
        }
        if !table.is_empty() {
            let (addr, len) = self.indirect_table(random, table);
            // WRITE means nothing beside INDIRECT, and neither does `next`.
            let flags = if random.one_in(4) { INDIRECT | WRITE } else { INDIRECT };
            let descriptor = Descriptor::new(addr, len, flags, random.next() as u16);
            self.batch.descriptors.push((indices[direct], descriptor));
        }
        self.batch.heads.push(indices[0]);
    }

    /// Writes an indirect table whose entries are linked in random order; returns its address and length.
    fn indirect_table(&mut self, random: &mut Random, chain: &[(u64, u32, u16)]) -> (u64, u32) {
        let mut order: Vec<usize> = (1..chain.len()).collect();
        for end in (1..order.len()).rev() {
            order.swap(end, random.below(end as u64 + 1) as usize);
        }
        // The first entry is the start of the chain.
        order.insert(0, 0);
        let bytes = chain.len() * size_of::<Descriptor>();
        // In one region, but at any alignment.
        let offset = self.next[1] + random.below(33) as usize;
        self.next[1] = offset + bytes;
        for (step, &(addr, len, flags)) in chain.iter().enumerate() {
            let (flags, next) = match order.get(step + 1) {
                Some(&next) => (flags | NEXT, next as u16),
                None => (flags, random.next() as u16),
            };
            let descriptor = Descriptor::new(addr, len, flags, next);
            let place = offset + order[step] * size_of::<Descriptor>();
            let entry = &mut self.batch.data[place..place + size_of::<Descriptor>()];
            entry.copy_from_slice(vm_memory::ByteValued::as_slice(&descriptor));
        }
        (DATA_BASE + offset as u64, bytes as u32)
    }
}

/// Cuts `len` bytes into at most `most` pieces; often at the header's end, sometimes anywhere.
fn cut(random: &mut Random, len: usize, most: usize) -> Vec<usize> {
    if len == 0 {
        return Vec::new();
    }
    let mut borders = vec![0, len];
    if random.one_in(2) {
        borders.extend([16.min(len), len - 1]);
    }
    for _ in 0..random.below(6) {
        borders.push(random.below(len as u64) as usize);
    }
    borders.sort_unstable();
    borders.dedup();
    while borders.len() - 1 > most {
        borders.remove(1);
    }
    borders.windows(2).map(|pair| pair[1] - pair[0]).collect()
}
