//! Each rule of the conversation on its own.
