//! Claims about the whole on Kubernetes, each tried on a real cluster. They are apart from the other cases so that a
//! machine that cannot have a cluster, or is busy with one, has the others for itself.
//!
//! | claim | case |
//! |---|---|
//! | the cluster is one | [`cluster`] |
//! | a pod is let in as itself, and nobody else is | [`identity`] |
//! | the definitions refuse what is wrong, take what the docs show, and show what matters | [`resources`] |
//! | a pod's connections pass its proxy, and it leaves the mesh before it stops | [`pod`] |
//! | who comes in through a pod's door is who may, whatever the way | [`doors`] |
//! | the operator tells, and leads alone | [`operator`] |
//! | the README's first steps in a cluster are those to take | [`quickstart`] |
//! | the parts together: mTLS between injected pods, releases | [`whole`] |
//! | nothing fails because of us, whatever restarts, rotates or is lost | [`soak`] |
//! | several replicas are one: any serves, the leader judges, and a change of leader disturbs nothing | [`replicas`] |
//! | who led before and does not know it changes nothing | [`stale`] |
//! | running pods join the mesh and leave it, and what could break is left alone | [`enrol`] |
//! | pods of a labelled namespace are injected, others are not, whatever happens to the operator | [`webhook`] |
//! | it is installed, upgraded and uninstalled by its chart; nobody writes more than their roles are for | [`chart`] |

#![expect(clippy::unwrap_used, reason = "a test reports by failing")]

mod chart;
mod cluster;
mod doors;
mod enrol;
mod identity;
mod operator;
mod pod;
mod quickstart;
mod replicas;
mod resources;
mod shop;
mod soak;
mod stale;
mod webhook;
mod whole;
