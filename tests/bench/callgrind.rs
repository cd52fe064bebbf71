//! Talks to callgrind from inside, and reads what it wrote.

use std::arch::asm;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;
use std::path::Path;
use std::process::Command;

/// Requests of callgrind.h.
const BASE: usize = ((b'C' as usize) << 24) | ((b'T' as usize) << 16);
const ZERO_STATS: usize = BASE + 1;
const TOGGLE_COLLECT: usize = BASE + 2;
const DUMP_STATS_AT: usize = BASE + 3;

/// valgrind.h's request: rotations that come to nothing, and an exchange of a register with itself.
#[inline(always)]
fn request(what: usize, argument: usize) {
    let words = [what, argument, 0, 0, 0, 0];
    // SAFETY: on the CPU itself nothing changes but flags; valgrind answers in rdx.
    unsafe {
        asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") &raw const words, inout("rdx") 0_usize => _, inout("rdi") 0_usize => _,
        );
    }
}

/// Begins or ends counting.
#[inline(always)]
pub fn toggle() {
    request(TOGGLE_COLLECT, 0);
}

/// Writes the counts down under a name, and begins at zero again.
pub fn dump(name: &str) {
    let name = CString::new(name).unwrap();
    request(DUMP_STATS_AT, name.as_ptr().addr());
    request(ZERO_STATS, 0);
}

/// Runs this program under callgrind with this argument, and reads what it dumps: so many times.
pub fn run_this(argument: &str, dumps: usize) -> Vec<(String, Profile)> {
    let folder = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--dump-instr=yes", "--dump-line=yes"])
        .args(["--compress-strings=no", "--compress-pos=no", "--combine-dumps=no"])
        .arg(format!("--callgrind-out-file={}", folder.path().join("out").display()))
        .arg(&program)
        .arg(argument)
        // What every x86_64 has, so that the choice is the same on all of them.
        .env("VHOST_USER_PMEM_COPY", "nt16")
        .output()
        .expect("valgrind cannot be run; ci/lab/install installs it");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let listing = Listing::of(&program);
    let dumps = (1..=dumps).map(|dump| folder.path().join(format!("out.{dump}")));
    dumps.map(|dump| Profile::read(&dump, &listing)).collect()
}

/// An instruction that tells what the code around it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
    /// A lock prefix, or an exchange with memory.
    Locked,
    /// mfence; or what compilers use in its place, a locked instruction on the stack.
    Fence,
    SystemCall,
}

/// What a program consists of.
#[derive(Debug)]
pub struct Listing {
    program: String,
    special: HashMap<u64, Special>,
    /// Where its functions begin: callgrind does not know those that have no size, as in assembler.
    labels: BTreeMap<u64, String>,
}

impl Listing {
    pub fn of(program: &Path) -> Self {
        let listing = Command::new("objdump")
            .args(["--disassemble", "--no-show-raw-insn", "-M", "intel"])
            .arg(program)
            .output()
            .expect("objdump cannot be run; it comes with binutils");
        let (mut special, mut labels) = (HashMap::new(), BTreeMap::new());
        let number = |text: &str| u64::from_str_radix(text.trim(), 16);
        for line in String::from_utf8_lossy(&listing.stdout).lines() {
            if let Some((address, code)) = line.split_once(":\t") {
                special.extend(number(address).ok().zip(special_of(code)));
            } else if let Some((address, label)) = line.split_once(" <") {
                labels.extend(number(address).ok().zip(label.strip_suffix(">:").map(str::to_owned)));
            }
        }
        assert!(!labels.is_empty(), "objdump says nothing about {program:?}");
        Self { program: program.to_str().unwrap().to_owned(), special, labels }
    }
}

fn special_of(code: &str) -> Option<Special> {
    match code.split_whitespace().next()? {
        "lock" if code.starts_with("lock or") && code.contains("[rsp") => Some(Special::Fence),
        "lock" => Some(Special::Locked),
        "xchg" if code.contains('[') => Some(Special::Locked),
        "mfence" => Some(Special::Fence),
        "syscall" => Some(Special::SystemCall),
        _ => None,
    }
}

/// What ran, and how often.
#[derive(Debug, Default)]
pub struct Profile {
    pub functions: BTreeMap<String, u64>,
    /// By the file that the source is in, also where it is inlined.
    pub files: BTreeMap<String, u64>,
    pub special: BTreeMap<Special, u64>,
    /// Functions outside of the program.
    pub foreign: BTreeSet<String>,
}

impl Profile {
    pub fn total(&self) -> u64 {
        self.functions.values().sum()
    }

    /// Reads a dump, and the name that it was given.
    pub fn read(dump: &Path, listing: &Listing) -> (String, Self) {
        let text = std::fs::read_to_string(dump).unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("desc: Trigger: Client Request: "));
        let name = name.expect("a dump without a name").to_owned();
        let (mut profile, mut is_inclusive) = (Self::default(), false);
        let (mut object, mut file, mut function) = ("", "", "");
        for line in text.lines() {
            match line.split_once('=') {
                Some(("ob", value)) => object = value,
                Some(("fl" | "fi" | "fe", value)) => file = value,
                Some(("fn", value)) => function = value,
                // The line behind it is what the callee has cost, which is counted there.
                Some(("calls", _)) => is_inclusive = true,
                Some(_) => {}
                None if std::mem::take(&mut is_inclusive) => {}
                None => {
                    let Some(address) = line.strip_prefix("0x") else { continue };
                    let mut words = address.split_whitespace();
                    let address = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
                    let count: u64 = words.nth(1).map_or(0, |count| count.parse().unwrap());
                    let label = listing.labels.range(..=address).next_back().map(|(_, label)| label.as_str());
                    let is_known = !function.starts_with("0x") || object != listing.program;
                    let function = label.filter(|_| !is_known).unwrap_or(function);
                    *profile.functions.entry(function.to_owned()).or_default() += count;
                    *profile.files.entry(short(file)).or_default() += count;
                    if object != listing.program {
                        profile.foreign.insert(format!("{function} of {object}"));
                    } else if let Some(special) = listing.special.get(&address) {
                        *profile.special.entry(*special).or_default() += count;
                    }
                }
            }
        }
        (name, profile)
    }
}

/// A source file without the folders before its crate's.
fn short(file: &str) -> String {
    let at = file.find("/src/").map_or(0, |at| file[..at].rfind('/').map_or(0, |slash| slash + 1));
    file[at..].to_owned()
}
