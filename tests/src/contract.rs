//! Macros that run one test over many fronts.

/// Runs tests over one front or two. Each test is an `async fn(one: Front,
/// other: Front)` of the calling module: it sends through `one` and observes
/// through `other`.
///
/// Tests under `sessions` need a session, which the native framing and
/// `BiDiChat` have; tests under `calls` need only unary calls.
///
/// Since fronts have no rules, the short run covers four pairs of fronts:
/// native, WebSocket, `BiDiChat`, and a mixed one. The other pairs are in a module `long`,
/// which the short run skips by that name.
#[macro_export]
macro_rules! through_all_fronts {
    (sessions: $($session:ident),+; calls: $($call:ident),+ $(;)?) => {
        $crate::through_all_fronts!(short sessions: $($session),+; calls: $($call),+);
        mod long {
            use super::{$($session),+, $($call),+};
            $crate::through_all_fronts!(long sessions: $($session),+; calls: $($call),+);
        }
    };
    (short sessions: $($session:ident),+; calls: $($call:ident),+) => {
        $crate::through_all_fronts!(mod wire, Native, Native, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod websocket, WebSocket, WebSocket, $($session),+);
        $crate::through_all_fronts!(mod grpc, Bidi, Bidi, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod wire_to_grpc, Native, Bidi, $($session),+);
        $crate::through_all_fronts!(mod calls_to_wire, Calls, Native, $($call),+);
    };
    (long sessions: $($session:ident),+; calls: $($call:ident),+) => {
        $crate::through_all_fronts!(mod wire_to_grpc, Native, Bidi, $($call),+);
        $crate::through_all_fronts!(mod grpc_to_wire, Bidi, Native, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod tls, Tls, Tls, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod websocket, WebSocket, WebSocket, $($call),+);
        $crate::through_all_fronts!(mod wire_to_websocket, Native, WebSocket, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod websocket_to_grpc, WebSocket, Bidi, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod calls, Calls, Calls, $($call),+);
        $crate::through_all_fronts!(mod wire_to_calls, Native, Calls, $($call),+);
    };
    (on $store:ident: mod $module:ident, $one:ident, $other:ident, $($test:ident),+) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() {
                    $crate::$store(super::$test($crate::Front::$one, $crate::Front::$other)).await;
                }
            )+
        }
    };
    (mod $module:ident, $one:ident, $other:ident, $($test:ident),+) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test($crate::Front::$one, $crate::Front::$other).await;
                }
            )+
        }
    };
}

/// As [`through_all_fronts`], and also on a cluster ([`crate::on_cluster`]):
/// the `sample` in the short run, and all tests in both directions in the long
/// run.
#[macro_export]
macro_rules! through_all_fronts_on_all_stores {
    (sessions: $($session:ident),+; calls: $($call:ident),+; sample: $($sample:ident),+ $(;)?) => {
        $crate::through_all_fronts!(short sessions: $($session),+; calls: $($call),+);
        $crate::through_all_fronts!(on on_cluster: mod on_cluster, Native, Bidi, $($sample),+);
        mod long {
            use super::{$($session),+, $($call),+};
            $crate::through_all_fronts!(long sessions: $($session),+; calls: $($call),+);
            $crate::through_all_fronts!(
                on on_cluster: mod cluster_wire_to_grpc, Native, Bidi, $($session),+, $($call),+);
            $crate::through_all_fronts!(
                on on_cluster: mod cluster_grpc_to_wire, Bidi, Native, $($session),+, $($call),+);
        }
    };
}
