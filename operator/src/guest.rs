//! Work for others that has a place in a [`Crowd`] while it lasts, and may have to make room.

use airlane_wire::crowd::{Connection, Crowd};
use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A place in a crowd. Cancelled when its guest has gone, and when it has to go.
#[derive(Debug)]
pub(crate) struct Place(CancellationToken);

impl Connection for Place {
    fn is_over(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Who has a place in a crowd; gone when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    place: CancellationToken,
    _gone: DropGuard,
}

impl Guest {
    /// Takes a place in the crowd, and sends somebody away if there was none left.
    pub(crate) fn enter(crowd: &Mutex<Crowd<Place>>, from: IpAddr) -> Guest {
        let place = CancellationToken::new();
        let mut crowd = crowd.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Place(other)) = crowd.admit(from, Place(place.clone())) {
            other.cancel();
        }
        Guest { _gone: place.clone().drop_guard(), place }
    }

    /// Returns when somebody else needs the place more.
    pub(crate) async fn sent_away(&self) {
        self.place.cancelled().await;
    }
}
