//! What peers may take of this process, and what is left for it to go on.
//!
//! | module | subject |
//! | --- | --- |
//! | [`bounds`] | every bound that a peer can meet: its value, what happens beyond it, and the table of them |
//! | [`budget`] | what the front-ends of each disk may have of memory, descriptors and threads |
//! | `map_count` | mappings and address space that no peer may use up |
//! | `thread` | threads: none is started that could not begin |

pub mod bounds;
pub mod budget;
pub(crate) mod map_count;
pub(crate) mod thread;
