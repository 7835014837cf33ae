// EGo's driver, apart from the library's module, which depends on the standard library only.
module handover/ego

go 1.26

require handover v1.0.0

require (
	github.com/edgelesssys/ego v1.8.0
	github.com/go-jose/go-jose/v4 v4.0.5 // indirect
	golang.org/x/crypto v0.33.0 // indirect
)

replace handover => ../
