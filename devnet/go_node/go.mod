module gonode

go 1.26

require handover v1.0.0

replace handover => ../../sdk/go
