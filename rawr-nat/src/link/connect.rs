//! The side that comes.

use std::time::{Duration, Instant};

use rawr_proto::{BridgeName, IntroductionId};

use super::greeting::{hello, read_answer};
use super::{Begun, Familiarity, Link, LinkConfig, LinkError, Side, Trust};
use crate::bridge::{BridgeError, BridgeEvent, BridgeSocket};
use crate::driver::now;
use crate::identity::PublicKey;

/// Pause before a name that nobody held is looked for again.
const PAUSE: Duration = Duration::from_secs(1);

impl Link {
    /// Makes a link with whoever holds `name`, if its key is to be trusted. Where nobody holds it, or they
    /// are not reached, tries again for up to `wait`. See [`LinkConfig::stop`] for how to end it early:
    /// where the future is dropped instead, servers keep what it holds until they notice.
    ///
    /// # Errors
    /// Says which step failed, and how to mend it.
    pub async fn connect(
        config: &LinkConfig,
        name: &BridgeName,
        trust: &Trust,
        wait: Duration,
    ) -> Result<Self, LinkError> {
        let until = now() + wait;
        loop {
            match attempt(config, name, trust).await {
                Err(error) if error.is_passing() && is_time_left(until) => {
                    log::debug!("{error}; tried again");
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE) => {}
                        () = config.stopped() => return Err(LinkError::Stopped),
                    }
                }
                result => return result,
            }
        }
    }
}

fn is_time_left(until: Instant) -> bool {
    now() + PAUSE < until
}

async fn attempt(config: &LinkConfig, name: &BridgeName, trust: &Trust) -> Result<Link, LinkError> {
    let mut bridge = BridgeSocket::bind(config.bridge()).map_err(LinkError::Sockets)?;
    let failed =
        |error| LinkError::Name { name: name.clone(), server: config.server.address, error };
    let meeting = async {
        let key = look_up(&mut bridge, name).await?.map_err(failed)?;
        let familiarity = trust.check(name, key)?;
        let id = bridge.introduce(name, key, &hello())?;
        let answer = answer(&mut bridge, id).await?.map_err(failed)?;
        read_answer(&answer)
            .map_err(|refusal| LinkError::Refused { name: name.clone(), refusal })?;
        Ok::<_, LinkError>((key, familiarity, id))
    };
    let (key, familiarity, id) = tokio::select! {
        met = meeting => met?,
        () = config.stopped() => return Err(LinkError::Stopped),
    };
    let begun = Begun::new(config, Side::Calling, key, familiarity, id)?;
    let link = begun.establish(Side::Calling, config.stopped()).await?;
    if familiarity == Familiarity::New
        && let Err(error) = trust.remember(name, key)
    {
        link.close().await;
        return Err(error.into());
    }
    Ok(link)
}

/// The key that holds a name.
async fn look_up(
    bridge: &mut BridgeSocket,
    name: &BridgeName,
) -> Result<Result<PublicKey, BridgeError>, LinkError> {
    bridge.look_up(name);
    loop {
        match bridge.next().await.map_err(LinkError::Sockets)? {
            BridgeEvent::Found { holder, .. } => return Ok(Ok(holder.key)),
            BridgeEvent::NotFound { error, .. } => return Ok(Err(error)),
            _ => {}
        }
    }
}

/// What the holder of the name answers.
async fn answer(
    bridge: &mut BridgeSocket,
    introduction: IntroductionId,
) -> Result<Result<Vec<u8>, BridgeError>, LinkError> {
    loop {
        match bridge.next().await.map_err(LinkError::Sockets)? {
            BridgeEvent::Answer { id, message, .. } if id == introduction => {
                return Ok(Ok(message));
            }
            BridgeEvent::NotIntroduced { id, error } if id == introduction => {
                return Ok(Err(error));
            }
            _ => {}
        }
    }
}
