//! The resources users write: their Kubernetes shapes, how files of them are read, and what they mean.
//!
//! [`mesh_policy`], [`canary`] and [`service`] are the shapes, the one source of the schemas. [`read_file`] takes a
//! text through three stages: YAML to a tree that knows its lines, the tree against the schema, the typed shape to a
//! value of core. [`read_object`] does the same with an object as an API server gives it. Nothing here does IO.

#[expect(unreachable_pub, reason = "KubeSchema copies its structs into functions")]
pub mod canary;
#[expect(unreachable_pub, reason = "KubeSchema copies its structs into functions")]
pub mod matching;
#[expect(unreachable_pub, reason = "KubeSchema copies its structs into functions")]
pub mod mesh_policy;
pub mod name;
pub mod quantity;
pub mod request;
#[expect(unreachable_pub, reason = "KubeSchema copies its structs into functions")]
pub mod service;
pub mod shape;
#[expect(unreachable_pub, reason = "KubeSchema copies its structs into functions")]
pub mod status;
pub mod text;

mod crds;
mod field;
mod kind;
mod lines;
mod meaning;
mod object;
mod read;
mod schema;
mod tree;
mod yaml;

pub use crds::crds;
pub use lines::Lines;
pub use object::{DEFAULT_NAMESPACE, Object, Unread, Value, read_object};
pub use read::{FILE_BYTES_MAX, FileError, Parsed, Refused, merge, read_bytes, read_file};
pub use schema::NotYet;
pub use tree::Location;
