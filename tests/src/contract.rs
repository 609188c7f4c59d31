//! One test, many ways into the server.

/// Runs tests through the fronts and across them. Each is an
/// `async fn(one: Front, other: Front)` of the module that names it here: it
/// says what `one` of its connections does and what the `other`s see of it.
///
/// `sessions` need a session, which both the native framing and `BiDiChat`
/// have; `calls` need no more than the calls of gRPC have, too.
#[macro_export]
macro_rules! through_all_fronts {
    (sessions: $($session:ident),+; calls: $($call:ident),+ $(;)?) => {
        $crate::through_all_fronts!(mod wire, Native, Native, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod tls, Tls, Tls, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod grpc, Bidi, Bidi, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod wire_to_grpc, Native, Bidi, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod grpc_to_wire, Bidi, Native, $($session),+, $($call),+);
        $crate::through_all_fronts!(mod calls, Calls, Calls, $($call),+);
        $crate::through_all_fronts!(mod calls_to_wire, Calls, Native, $($call),+);
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

/// As [`through_all_fronts`], and then on a cluster, where each side of a test
/// goes through each of both fronts: see [`crate::on_cluster`].
#[macro_export]
macro_rules! through_all_fronts_on_all_stores {
    (sessions: $($session:ident),+; calls: $($call:ident),+ $(;)?) => {
        $crate::through_all_fronts!(sessions: $($session),+; calls: $($call),+);
        $crate::through_all_fronts!(
            on on_cluster: mod cluster_wire_to_grpc, Native, Bidi, $($session),+, $($call),+);
        $crate::through_all_fronts!(
            on on_cluster: mod cluster_grpc_to_wire, Bidi, Native, $($session),+, $($call),+);
    };
}
