//! The credentials of a call of `hark.v1.Admin` over the network, as metadata.

use hark_protocol::{Code, Password, Refusal, UserName};
use tonic::metadata::{MetadataMap, MetadataValue};

/// Metadata key of the user.
pub const USER: &str = "hark-user";

/// Metadata key of the password.
pub const PASSWORD: &str = "hark-password-bin";

/// Adds credentials to the metadata of a call.
///
/// # Errors
/// A [`Refusal`] if the name has characters that metadata cannot carry.
pub fn add_credentials(
    metadata: &mut MetadataMap,
    user: &UserName,
    password: &Password,
) -> Result<(), Refusal> {
    let name = MetadataValue::try_from(user.as_str());
    let name = name.map_err(|_| Refusal::new(Code::BadName, "the name of an admin is ASCII"))?;
    let mut secret = MetadataValue::from_bytes(password.expose().as_bytes());
    secret.set_sensitive(true);
    metadata.insert(USER, name);
    metadata.insert_bin(PASSWORD, secret);
    Ok(())
}

/// Returns the credentials in the metadata of a call; `None` if there are none.
///
/// # Errors
/// A [`Refusal`] for a malformed name or password.
pub fn credentials(metadata: &MetadataMap) -> Result<Option<(UserName, Password)>, Refusal> {
    let (Some(user), Some(password)) = (metadata.get(USER), metadata.get_bin(PASSWORD)) else {
        return Ok(None);
    };
    let malformed = || Refusal::new(Code::BadRequest, "malformed credentials");
    let user = user.to_str().map_err(|_| malformed())?.parse()?;
    let password = password.to_bytes().map_err(|_| malformed())?;
    let password = std::str::from_utf8(&password).map_err(|_| malformed())?;
    Ok(Some((user, password.parse()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_survive_the_metadata() {
        let mut metadata = MetadataMap::new();
        assert_eq!(credentials(&metadata), Ok(None));
        let (user, password) = ("ann".parse().unwrap(), "sécret".parse().unwrap());
        add_credentials(&mut metadata, &user, &password).unwrap();
        assert_eq!(credentials(&metadata), Ok(Some((user, password))));
    }
}
