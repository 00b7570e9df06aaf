//! `airlane demo`: an example service, and the telling of what happens to it.

pub(crate) mod app;
mod caller;
pub(crate) mod teller;
