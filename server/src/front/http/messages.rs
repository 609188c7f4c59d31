//! The requests that receive and acknowledge: their parameters, and the login as a device.

use std::sync::Arc;

use hark_protocol::{DeviceName, Request, RoomRequest, UserName};
use http::StatusCode;
use http::request::Parts;

use super::receive::{DeliveryOptions, deliver, unread};
use super::response::json;
use super::route::Parameters;
use super::{Answer, Done, Http, HttpError, Login, lines, of_login};
use crate::chat::{Fault, Inbox};
use crate::front::call::{Call, CallError};
use crate::front::caller::Caller;

impl Http {
    /// Answers with the unacknowledged messages of a device.
    pub(super) async fn unread(&self, user: UserName, parts: &Parts, caller: &Caller) -> Answer {
        let parameters = Parameters::of(&parts.uri, &["device"])?;
        let device = parameters.device()?;
        let (_, inbox) = self.inbox(user, device, parts, caller).await?;
        Ok(lines(unread(inbox, caller.client.clone()).await?))
    }

    /// Makes the caller the receiver of a device, and answers with its messages.
    pub(super) async fn receive(&self, user: UserName, parts: &Parts, caller: &Caller) -> Answer {
        let parameters = Parameters::of(&parts.uri, &["device", "after", "ack", "count"])?;
        let acknowledges = match parameters.text("ack") {
            None => false,
            Some("auto") => true,
            Some(_) => return Err(HttpError::bad_request("the only value of ack is auto")),
        };
        let options = DeliveryOptions {
            acknowledges,
            count: parameters.number("count")?,
            ack_timeout: self.0.ack_timeout,
        };
        let device = parameters.device()?;
        let after = parameters.sequence("after")?;
        let Login {
            user,
            password,
            is_token,
        } = self.login_of(user, parts, caller).await?;
        let chat = &self.0.chat;
        if acknowledges && device.is_some() {
            chat.check_cursors().map_err(CallError::from)?;
        }
        if let Some(after) = after {
            let of_call = (&*caller.connection, caller.address);
            let inbox = chat.inbox(of_call, user.clone(), password.clone(), device.clone());
            let inbox = inbox.await.map_err(|fault| of_login(fault, is_token))?;
            inbox.start_after(after).await.map_err(CallError::from)?;
        }
        let mut call = Call::new(chat, caller);
        let request = match device.clone() {
            None => Request::Connect {
                user: user.clone(),
                password,
            },
            Some(device) => Request::Room(RoomRequest::Attach {
                user: user.clone(),
                device,
                password,
            }),
        };
        call.request(Ok(request))
            .await
            .map_err(|error| of_login(error, is_token))?;
        let receivers = Arc::clone(&self.0.receivers);
        let held = caller.client.clone();
        Ok(lines(deliver(
            (user, device),
            call,
            receivers,
            options,
            held,
        )))
    }

    /// Acknowledges messages of a log of a device.
    pub(super) async fn acknowledge(
        &self,
        user: UserName,
        parts: &Parts,
        caller: &Caller,
    ) -> Answer {
        let parameters = Parameters::of(&parts.uri, &["number", "device", "log"])?;
        let number = parameters
            .sequence("number")?
            .ok_or_else(|| HttpError::bad_request("the number is missing"))?;
        let (device, log) = (parameters.device()?, parameters.log()?);
        let (user, inbox) = self.inbox(user, device.clone(), parts, caller).await?;
        if let Some(room) = &log {
            // An open response ignores the acknowledgement of a room that it does not read.
            inbox.check_room(room).await.map_err(CallError::from)?;
        }
        let receiver = (user, device);
        let receivers = &self.0.receivers;
        if !receivers.acknowledge(&receiver, log.as_ref(), number) {
            let acknowledged = inbox.acknowledge(log.as_ref(), number);
            acknowledged.await.map_err(CallError::from)?;
        }
        let synced = inbox.sync_acknowledgements().await;
        synced.map_err(|error| CallError::from(Fault::from(error)))?;
        Ok(json(StatusCode::OK, &Done {}))
    }

    /// Logs in to the messages of a device, as its user, who is returned as well.
    async fn inbox(
        &self,
        user: UserName,
        device: Option<DeviceName>,
        parts: &Parts,
        caller: &Caller,
    ) -> Result<(UserName, Inbox), HttpError> {
        let Login {
            user,
            password,
            is_token,
        } = self.login_of(user, parts, caller).await?;
        let chat = &self.0.chat;
        let of_call = (&*caller.connection, caller.address);
        let inbox = chat.inbox(of_call, user.clone(), password, device);
        let inbox = inbox.await.map_err(|fault| of_login(fault, is_token))?;
        Ok((user, inbox))
    }
}
