//! Pages, and messages missing from them.

use std::sync::Arc;
use std::time::Duration;

use super::super::kept::{Failure, Kept};
use super::super::{ShardConfig, ShardStore};
use super::{KeptOpener, config, faulty};
use crate::ledger::Gap;
use crate::log::Block;
use crate::store::contract::{ALL, WIDE, create, queued, read, stored, text, texts};
use crate::store::{Account, Message, Position, ReadLimit, Store, Unavailable};

/// Returns a store with five messages for bob, each in its own block.
async fn five_messages() -> (ShardStore, Arc<Kept>, Account, Vec<Arc<Message>>) {
    let (store, kept) = faulty(ShardConfig {
        numbers_after: Some(1 << 52),
        ..config(WIDE)
    });
    let bob = create(&store, "bob").await;
    for content in ["1", "2", "3", "4", "5"] {
        stored(&store, text("bob", content)).await;
    }
    let messages = read(&store, &bob).await;
    (store, kept, bob, messages)
}

/// Replaces the nth message with a gap.
async fn drop_message(
    store: ShardStore,
    kept: &Arc<Kept>,
    bob: &Account,
    message: &Message,
) -> Arc<ShardStore> {
    store.close().await.unwrap();
    let first = message.position.sequence.0;
    let gap = Gap {
        first,
        end: message.position,
        messages: 1,
        bytes: message.text.len() as u64,
    };
    kept.replace_block(&gap.block(bob.incarnation));
    let opener = KeptOpener {
        kept: Arc::clone(kept),
    };
    Arc::new(ShardStore::open(Arc::new(opener), config(WIDE)).unwrap())
}

/// Waits until the blocks of the log were merged into one.
async fn wait_for_merge(kept: &Kept) {
    let merged = async {
        while kept.blocks().len() > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), merged).await;
    waited.expect("the blocks are merged");
}

#[tokio::test]
async fn scattered_inbox_is_merged_when_read() {
    let (store, kept, bob, _) = five_messages().await;
    stored(&store, text("bob", "6")).await;
    assert_eq!(kept.blocks().len(), 6);
    let messages = read(&store, &bob).await;
    wait_for_merge(&kept).await;
    assert_eq!(read(&store, &bob).await, messages);
    assert_eq!(queued(&store, &bob).await, 6);
    store.acknowledge(&bob, messages[2].position);
    stored(&store, text("bob", "7")).await;
    assert_eq!(texts(&store, &bob).await, ["4", "5", "6", "7"]);
    drop(store);
    let opener = KeptOpener { kept };
    let store = ShardStore::open(Arc::new(opener), config(WIDE)).unwrap();
    assert_eq!(texts(&store, &bob).await, ["4", "5", "6", "7"]);
}

#[tokio::test]
async fn page_over_a_merge_has_no_message_twice() {
    let (store, kept, bob, messages) = five_messages().await;
    stored(&store, text("bob", "6")).await;
    let first = ReadLimit { messages: 2, ..ALL };
    let page = store.read(&bob, Position::default(), first).await.unwrap();
    assert_eq!(page.messages, messages[..2]);
    wait_for_merge(&kept).await;
    let page = store.read(&bob, messages[1].position, ALL).await.unwrap();
    assert_eq!(page.messages[..3], messages[2..]);
    assert_eq!((page.messages.len(), page.complete), (4, true));
}

#[tokio::test]
async fn failed_append_of_a_merge_loses_nothing() {
    for failure in [Failure::Before, Failure::After] {
        let (store, kept, bob, _) = five_messages().await;
        stored(&store, text("bob", "6")).await;
        kept.fail_next(failure);
        // A read is unavailable while the store is opened again.
        let is_merged = async {
            while kept.blocks().len() > 1 {
                drop(store.read(&bob, Position::default(), ALL).await);
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), is_merged).await;
        waited.expect("the blocks are merged");
        drop(store);
        let opener = KeptOpener { kept };
        let store = ShardStore::open(Arc::new(opener), config(WIDE)).unwrap();
        assert_eq!(texts(&store, &bob).await, ["1", "2", "3", "4", "5", "6"]);
    }
}

#[tokio::test]
async fn numbers_begin_after_the_configured_one() {
    let (.., messages) = five_messages().await;
    assert!(messages[0].position.sequence.0 > 1 << 52);
}

#[tokio::test]
async fn gap_is_skipped_and_the_counts_go_on() {
    let (store, kept, bob, messages) = five_messages().await;
    let store = drop_message(store, &kept, &bob, &messages[2]).await;
    let page = store.read(&bob, Position::default(), ALL).await.unwrap();
    assert_eq!(
        (page.messages.len(), page.complete, page.starts_after),
        (2, false, None)
    );
    let page = store.read(&bob, messages[1].position, ALL).await.unwrap();
    assert_eq!(
        (page.complete, page.starts_after),
        (true, Some(messages[2].position))
    );
    assert_eq!(page.messages, messages[3..]);
    let none = ReadLimit {
        messages: 1,
        bytes: 0,
    };
    let page = store.read(&bob, messages[1].position, none).await.unwrap();
    assert_eq!((page.messages.len(), page.complete), (1, false));
}

#[tokio::test]
async fn gap_at_the_end_completes_a_page() {
    let (store, kept, bob, messages) = five_messages().await;
    let store = drop_message(store, &kept, &bob, &messages[4]).await;
    let page = store.read(&bob, messages[3].position, ALL).await.unwrap();
    assert_eq!((page.messages.len(), page.complete), (0, true));
    assert_eq!(page.starts_after, Some(messages[4].position));
    stored(&*store, text("bob", "6")).await;
    let last = store
        .read(&bob, messages[4].position, ALL)
        .await
        .unwrap()
        .messages;
    assert_eq!(last[0].position.messages, 6);
}

#[tokio::test]
async fn malformed_block_is_unavailable_behind_the_messages_before() {
    let (store, kept, bob, messages) = five_messages().await;
    store.close().await.unwrap();
    let number = messages[2].position.sequence.0;
    let block = Block {
        inbox: bob.incarnation,
        first: number,
        last: number,
        payload: vec![9, 9].into(),
    };
    kept.replace_block(&block);
    let opener = KeptOpener { kept };
    let store = ShardStore::open(Arc::new(opener), config(WIDE)).unwrap();
    let page = store.read(&bob, Position::default(), ALL).await.unwrap();
    assert_eq!((page.messages.len(), page.complete), (2, false));
    assert_eq!(
        store.read(&bob, messages[1].position, ALL).await,
        Err(Unavailable)
    );
}

#[tokio::test]
async fn acknowledged_messages_are_skipped_knowingly() {
    let (store, kept, bob, messages) = five_messages().await;
    store.acknowledge(&bob, messages[3].position);
    // A synced record follows.
    stored(&store, text("bob", "6")).await;
    assert_eq!(kept.blocks().len(), 2);
    let page = store.read(&bob, messages[0].position, ALL).await.unwrap();
    assert_eq!(page.starts_after, Some(messages[3].position));
    assert_eq!(
        page.messages[0].position.messages,
        messages[3].position.messages + 1
    );
    assert_eq!(texts(&store, &bob).await, ["5", "6"]);
    let page = store.read(&bob, messages[3].position, ALL).await.unwrap();
    assert_eq!(page.starts_after, None);
}
