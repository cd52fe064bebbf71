//! What peers may take of this process, and what is left for it to go on.
//!
//! | module | subject |
//! | --- | --- |
//! | [`bounds`] | every bound that a peer can meet: its value and unit |
//! | [`table`] | what happens beyond each of them, as the README and the manual page say it |
//! | [`budget`] | what the front-ends of each disk may have of memory, descriptors and threads |
//! | `map_count` | mappings that peers may cause (`vm.max_map_count`) |
//! | `address_space` | address space that is left (`ulimit -v`) |
//! | `thread` | threads: none is started that could not begin |

pub(crate) mod address_space;
pub mod bounds;
pub mod budget;
pub(crate) mod map_count;
pub mod table;
pub(crate) mod thread;
