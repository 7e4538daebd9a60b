"""Generated protobuf code of package activity.v1; see protos/ and ``make protos``."""
