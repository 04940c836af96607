//! Who connects to whom through which NATs: two hosts of every two kinds, in namespaces, with the client
//! library's own connection between them.

mod account;
mod bars;
mod cell;
mod kind;
pub mod node;
mod report;
mod results;
mod run;
mod site;
mod tcp;
mod trial;
pub mod wire;
mod words;

pub use cell::{Axis, Cell, SPECIAL, SUBSET, pairs};
pub use kind::{Expected, Kind, Outcome};
pub use report::{markdown, replace};
pub use results::{CellResult, KindResult, NotRun, Results, Spread};
pub use run::{Plan, run};
pub use site::Internet;
pub use trial::Trial;
pub use words::Classified;
