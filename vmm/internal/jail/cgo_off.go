//go:build !cgo

package jail

const withCgo = false

// cgoRules is empty: the product is built without cgo.
func cgoRules() []rule { return nil }
