"""What several tests share: small real models and processors, damaged files, servers, a Hub."""
