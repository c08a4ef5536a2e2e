//go:build cgo

package jail

import "golang.org/x/sys/unix"

const withCgo = true

// pthreadClone are the flags of glibc's pthread_create.
const pthreadClone = goClone | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// cgoRules are what glibc's threads need beyond the Go runtime's own. Only
// tests are built so (the race detector wants cgo); the product is not.
func cgoRules() []rule {
	return []rule{
		{nr: unix.SYS_CLONE, act: kill, why: "threads of Go and of glibc", when: []match{
			{{arg: 0, op: opEq, val: goClone}}, {{arg: 0, op: opEq, val: pthreadClone}}}},
		{nr: unix.SYS_SET_ROBUST_LIST, why: "each new glibc thread"},
		{nr: unix.SYS_RSEQ, why: "each new glibc thread"},
	}
}
