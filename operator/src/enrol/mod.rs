//! Running pods into the mesh and out of it: a namespace's label alone has its workloads restarted, one at a time, and
//! what does not come up again is put back.
//!
//! What is to be done is decided by [`decide`], purely; [`hands`] does it and nothing else, for the operator's leader
//! ([`run`]) as for people (`airlane join`, `airlane eject`). What was tried is remembered on the objects ([`record`]),
//! so that an operator that starts anew goes on where the last one was.

pub(crate) mod decide;
pub(crate) mod hands;
pub(crate) mod record;
pub(crate) mod run;
pub(crate) mod ties;
