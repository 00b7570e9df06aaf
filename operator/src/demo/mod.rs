//! `airlane demo`: a living mesh of example services in one command, and the story it tells.

pub(crate) mod app;
mod caller;
mod fleet;
mod load;
pub(crate) mod story;
mod teller;
