//! The tasks of the node, one file for each family.

mod echo;
mod pending;
mod proxy;
mod streams;

use hark_node::Node;

/// Registers all tasks of the node.
pub(crate) fn program(node: &Node<()>) {
    echo::register(node);
    proxy::register(node);
    pending::register(node);
    streams::register(node);
}
