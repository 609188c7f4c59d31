//! Server reflection (`grpc.reflection`): what tells a client of the services,
//! in both versions that clients ask for.

use hark_grpc::DESCRIPTORS;
use tonic::service::Routes;
use tonic_reflection::server::Builder;

/// Adds the services to these. A question has at most so many bytes.
pub(super) fn add(routes: Routes, request_bytes_max: usize) -> Routes {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes
            .add_service(v1.max_decoding_message_size(request_bytes_max))
            .add_service(v1alpha.max_decoding_message_size(request_bytes_max)),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "the services cannot be described");
            routes
        }
    }
}
