//! `Debug` for the messages that carry a password, which it omits.

use std::fmt::{Debug, Formatter, Result};

use crate::v1::{
    AttachRequest, ConnectRequest, CreateRequest, Credentials, DeleteRequest, PasswordRequest,
    SetUserPasswordRequest,
};

macro_rules! shown_without_password {
    ($($message:ident),*) => {$(
        impl Debug for $message {
            fn fmt(&self, f: &mut Formatter<'_>) -> Result {
                f.debug_struct(stringify!($message)).field("user", &self.user).finish_non_exhaustive()
            }
        }
    )*};
}

shown_without_password!(
    Credentials,
    CreateRequest,
    PasswordRequest,
    DeleteRequest,
    ConnectRequest,
    AttachRequest,
    SetUserPasswordRequest
);
