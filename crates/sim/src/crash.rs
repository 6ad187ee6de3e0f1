//! One life of the process: the real program on a runtime of one thread, until its story is told or it dies.
//!
//! Guarantees: death is what `kill -9` is to the rows: whatever was under way is dropped where it stood, nothing is
//! recorded any more, and the next life opens the same files. With the same seed a life goes the same way.
//!
//! Deliberately absent: power loss. What the disk had not synced is not lost here.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use app::compose::{App, ComposeError, Ports};
use app::config::{Config, Provider};
use domain::chance::Chance;
use domain::time::Clock;
use durable::store::{Access, Durability, StoreError, StoreOptions, Threading};
use outside::chain::{HttpRpc, Rpc};
use outside::http::Http;

use crate::world::World;

/// How long works that nobody announced may wait, when they are stepped through.
const LOOK: Duration = Duration::from_millis(500);

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// One work after the other, in the order they were claimed.
    Stepped,
    /// The engine's own dispatcher: works wait for the world side by side.
    Dispatched,
}

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended<T> {
    /// The story was told to its end.
    Told(T),
    /// The process died in the middle.
    Died,
}

/// How the process takes its leave when its story is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Without notice.
    Killed,
    /// It is asked to stop, and given its time.
    Stopped,
}

/// Why there was no life, or none that could end.
#[derive(Debug, thiserror::Error)]
pub enum NoLife {
    /// The runtime cannot be made.
    #[error("no runtime: {0}")]
    Runtime(#[from] std::io::Error),
    /// The program refuses to start.
    #[error("the program refuses to start: {0}")]
    Refused(#[from] ComposeError),
    /// The store failed while working.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// Everybody waits for something that will not come.
    #[error("the program is stuck: nothing runs and nobody will wake")]
    Stuck,
}

/// Starts the program in `world`, tells it a story, and ends its life with the story, or before.
///
/// # Errors
/// See [`NoLife`].
pub fn live<T>(
    world: &Arc<World>,
    config: Config,
    seed: u64,
    drive: Drive,
    story: impl AsyncFnOnce(&App) -> (T, Leave),
) -> Result<Ended<T>, NoLife> {
    let turned = world.clock().clone();
    let runtime =
        tokio::runtime::Builder::new_current_thread().on_thread_park(move || turned.turn()).build()?;
    let ports = ports(world, seed);
    let ended = runtime.block_on(async {
        tokio::select! {
            biased;
            () = world.death() => Ok(Ended::Died),
            () = world.clock().stuck() => Err(NoLife::Stuck),
            told = Box::pin(work_and_tell(world, config, ports, drive, story)) => told.map(Ended::Told),
        }
    });
    world.detach();
    drop(runtime);
    ended
}

fn ports(world: &Arc<World>, seed: u64) -> Ports {
    let clock: Arc<dyn Clock> = Arc::new(world.clock().clone());
    let http: Arc<dyn Http> = Arc::<World>::clone(world);
    let (of_http, of_clock) = (Arc::clone(&http), Arc::clone(&clock));
    let rpc = move |provider: &Provider| {
        let url = provider.url.expose().clone();
        Arc::new(HttpRpc::new(Arc::clone(&of_http), Arc::clone(&of_clock), url)) as Arc<dyn Rpc>
    };
    Ports {
        clock,
        chance: Chance::from_seed(seed),
        webhook_http: http,
        rpc: Arc::new(rpc),
        store: StoreOptions {
            threading: Threading::Inline,
            access: Access::Owner,
            durability: Durability::ProcessExit,
        },
    }
}

async fn work_and_tell<T>(
    world: &World,
    config: Config,
    ports: Ports,
    drive: Drive,
    story: impl AsyncFnOnce(&App) -> (T, Leave),
) -> Result<T, NoLife> {
    let app = match drive {
        Drive::Stepped => App::prepare(config, ports).await?,
        Drive::Dispatched => App::start(config, ports).await?,
    };
    world.attach(app.store.clone(), drive == Drive::Dispatched);
    let leaving = Cell::new(false);
    let mut work = pin!(async {
        match drive {
            Drive::Stepped => step(&app, &leaving).await,
            Drive::Dispatched => Err(app.store.failed().await),
        }
    });
    let (told, leave) = tokio::select! {
        biased;
        told = story(&app) => told,
        failed = &mut work => return failed.map_err(NoLife::Store),
    };
    if leave == Leave::Stopped {
        leaving.set(true);
        tokio::select! {
            biased;
            () = app.stop() => {}
            failed = &mut work => return failed.map_err(NoLife::Store),
        }
    }
    Ok(told)
}

async fn step<T>(app: &App, leaving: &Cell<bool>) -> Result<T, StoreError> {
    loop {
        let done = app.engine.step().await?;
        if leaving.get() {
            std::future::pending::<()>().await;
        }
        if done == 0 {
            let now = app.clock.now();
            let due = app.engine.next_due().await?.map_or(LOOK, |due| due.since(now));
            app.clock.sleep(due.clamp(Duration::from_millis(1), LOOK)).await;
        }
    }
}
