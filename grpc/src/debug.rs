//! `Debug` for the messages that carry a password or a token, which it omits.

use std::fmt::{Debug, Formatter, Result};

use crate::v1::{
    AttachRequest, ConnectRequest, CreateRequest, Credentials, DeleteRequest, Ok, PasswordRequest,
    SetUserPasswordRequest, TokenReply,
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

impl Debug for TokenReply {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("TokenReply").finish_non_exhaustive()
    }
}

impl Debug for Ok {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Ok")
            .field("sequence", &self.sequence)
            .field("last", &self.last)
            .field("held", &self.held)
            .field("room", &self.room)
            .field("count", &self.count)
            .field("oldest", &self.oldest)
            .finish_non_exhaustive()
    }
}
