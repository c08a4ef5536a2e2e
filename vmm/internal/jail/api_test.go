package jail

import (
	"testing"

	"golang.org/x/sys/unix"
)

// The API's socket may be accepted on and its peers asked for, and no more; with a
// network the options of both are there.
func TestAPIOptions(t *testing.T) {
	cred := []uint64{3, unix.SOL_SOCKET, unix.SO_PEERCRED, 0, 12}
	sockErr := []uint64{3, unix.SOL_SOCKET, unix.SO_ERROR, 0, 4}
	noDelay := []uint64{3, unix.IPPROTO_TCP, unix.TCP_NODELAY, 0, 4}
	for _, c := range []struct {
		name string
		m    Machine
		nr   uint32
		args []uint64
		want uint32
	}{
		{"no API: peer", Machine{}, unix.SYS_GETSOCKOPT, cred, eperm},
		{"no API: accept", Machine{}, unix.SYS_ACCEPT4, nil, eperm},
		{"API: peer", Machine{API: true}, unix.SYS_GETSOCKOPT, cred, allow},
		{"API: accept", Machine{API: true}, unix.SYS_ACCEPT4, nil, allow},
		{"API: another option", Machine{API: true}, unix.SYS_GETSOCKOPT, sockErr, eperm},
		{"API: setting one", Machine{API: true}, unix.SYS_SETSOCKOPT, noDelay, eperm},
		{"API: a socket of its own", Machine{API: true}, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, eperm},
		{"API: listening", Machine{API: true}, unix.SYS_LISTEN, []uint64{3, 1}, eperm},
		{"API and network: peer", Machine{API: true, Network: true}, unix.SYS_GETSOCKOPT, cred, allow},
		{"API and network: error", Machine{API: true, Network: true}, unix.SYS_GETSOCKOPT, sockErr, allow},
		{"metrics over TCP: its option", Machine{APITCP: true}, unix.SYS_SETSOCKOPT, noDelay, allow},
		{"metrics over TCP: a packet filter", Machine{APITCP: true}, unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, 0, 16}, eperm},
		{"metrics over TCP: peer", Machine{APITCP: true}, unix.SYS_GETSOCKOPT, cred, eperm},
	} {
		vm, _ := program(t, Config{Mode: Enforce, Groups: Strict(c.m)}, 1)
		if got := run(t, vm, unix.AUDIT_ARCH_X86_64, c.nr, c.args...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
}
