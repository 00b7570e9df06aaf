//! Applying: the only code that writes what our objects' statuses remember.

pub(crate) mod standalone;
