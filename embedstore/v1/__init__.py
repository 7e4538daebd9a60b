"""Generated protobuf and gRPC code of package embedstore.v1; see protos/ and ``make protos``."""
