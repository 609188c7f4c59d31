//! What the node does for others: a file for each family of tasks.

mod echo;
mod pending;
mod proxy;
mod streams;

use hark_node::Node;

/// All tasks of the node.
pub(crate) fn program(node: &Node<()>) {
    echo::register(node);
    proxy::register(node);
    pending::register(node);
    streams::register(node);
}
