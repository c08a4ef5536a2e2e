// Package network puts the same guest with the same TCP load behind several
// monitors, in turn, against a server on the host.
package network

import (
	"fmt"
	"os/exec"
	"path/filepath"
)

// Kind is what the guest does with its network.
type Kind string

const (
	Up          Kind = "up"   // sends a stream to the host
	Down        Kind = "down" // takes one from it
	RoundTrips  Kind = "rr"   // a byte there and back, again and again
	Connections Kind = "conn" // opens connections and closes them
)

// Load is one experiment.
type Load struct {
	Kind Kind
	MTU  int   // the interface's, in bytes
	N    int64 // bytes, round trips or connections
}

// Kinds are all of them.
func Kinds() []Kind { return []Kind{Up, Down, RoundTrips, Connections} }

// List are the loads of some kinds: streams of so many MB (10^6 bytes) at both MTUs, so many round trips, a tenth as
// many connections.
func List(kinds []string, megabytes, count int) (out []Load) {
	for _, k := range kinds {
		switch k := Kind(k); k {
		case Up, Down:
			out = append(out, Load{k, 1500, int64(megabytes) * 1e6}, Load{k, Jumbo, int64(megabytes) * 1e6})
		case RoundTrips:
			out = append(out, Load{k, 1500, int64(count)})
		case Connections:
			out = append(out, Load{k, 1500, int64(count / 10)})
		}
	}
	return out
}

// netbsd are the features that NetBSD's vioif leaves alone: at an MTU of 1500 the
// demo guest does as it does, at the larger one it takes all there is.
const netbsd = ",csum=0,tso=0,mrg=0"

// mode is the load as the demo guest is told of it.
func (l Load) mode(port int) string {
	what := "bytes"
	if l.Kind == RoundTrips || l.Kind == Connections {
		what = "count"
	}
	mode := fmt.Sprintf("nettcp=%s,host=%%s,port=%d,%s=%d,sum=0,mtu=%d", l.Kind, port, what, l.N, l.MTU)
	if l.MTU < Jumbo {
		mode += netbsd
	}
	return mode
}

// Subject is a monitor with a network that needs no privileges.
type Subject struct {
	Name string
	// mtu is the largest that its network has, in bytes.
	mtu int
	// gateway is the address at which the guest finds the host's loopback.
	gateway string
	// helper is a process that has to run beside the monitor; nil: none.
	helper func(dir string) []string
	argv   func(g guest) []string
	status int // with which it ends when the guest ends with 0
}

// guest is what a monitor is asked to start.
type guest struct {
	kernel, mode, dir string
	port, mtu         int
}

// Names of the subjects.
const (
	Ours      = "smolvmm"
	QEMUUser  = "QEMU user"
	namePasst = "QEMU passt"
)

// Jumbo is the largest MTU that any of them has: 65,535 bytes of an IPv4 packet,
// rounded down to a multiple of four as passt does.
const Jumbo = 65520

// ours is smolvmm as users get it, jail and all.
func ours(program string) Subject {
	return Subject{Name: Ours, mtu: Jumbo, gateway: "10.0.2.2", argv: func(g guest) []string {
		return []string{program, "-kernel", g.kernel, "-m", "64", "-append", "demo=" + g.mode, "-net", "user", "-mtu", fmt.Sprint(g.mtu), "-host-service", fmt.Sprint(g.port)}
	}}
}

// qemu is QEMU's microvm with a network. portExit is where the demo guest ends
// its machine; isa-debug-exit gives 2·0 + 1.
func qemu(program string, g guest, netdev string) []string {
	return []string{
		program, "-M", "microvm,accel=kvm,acpi=off,pic=off,pit=on,rtc=on,x-option-roms=off,auto-kernel-cmdline=on", "-cpu", "host,-arch-capabilities",
		"-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", g.kernel, "-append", "demo=" + g.mode + ",lax",
		"-device", "isa-debug-exit,iobase=0x501,iosize=1", "-global", "virtio-mmio.force-legacy=false",
		"-netdev", netdev, "-device", fmt.Sprintf("virtio-net-device,netdev=n,host_mtu=%d", g.mtu),
	}
}

func slirp(program string) Subject {
	return Subject{Name: QEMUUser, mtu: 1500, gateway: "10.0.2.2", status: 1, argv: func(g guest) []string {
		return qemu(program, g, "user,id=n")
	}}
}

func passt(program, helper string) Subject {
	socket := func(dir string) string { return filepath.Join(dir, "passt.sock") }
	return Subject{
		Name: namePasst, mtu: Jumbo, gateway: "10.0.2.2", status: 1,
		helper: func(dir string) []string {
			return []string{helper, "--foreground", "--one-off", "--quiet", "--socket", socket(dir), "--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2", "--ipv4-only", "--runas", "0"}
		},
		argv: func(g guest) []string {
			return qemu(program, g, "stream,id=n,server=off,addr.type=unix,addr.path="+socket(g.dir))
		},
	}
}

// Subjects are those whose programs are there, and why others are not.
func Subjects(smolvmm, qemuProgram, passtProgram string) (out []Subject, absent []string) {
	out = append(out, ours(smolvmm))
	q, err := exec.LookPath(qemuProgram)
	if err != nil {
		return out, []string{QEMUUser + ": " + err.Error()}
	}
	out = append(out, slirp(q))
	p, err := exec.LookPath(passtProgram)
	if err != nil {
		return out, []string{namePasst + ": " + err.Error()}
	}
	return append(out, passt(q, p)), nil
}
