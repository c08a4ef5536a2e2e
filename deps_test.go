// Package smolvmm_test holds the whole tree to the rules of docs/design.md: who
// may import whom, where unsafe and the process's own affairs may be, what is
// built without cgo.
package smolvmm_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/smolvmm/smolvmm"

// rule says what a package may import besides the standard library. A name that
// ends in "/..." stands for the folder and all below; names of this module are
// written without it.
type rule struct {
	pkg   string
	may   []string
	tests []string // what its tests may import besides
	why   string
}

const (
	sys     = "golang.org/x/sys/unix"
	mem     = "vmm/guestmem"
	virtq   = "devices/virtq"
	mock    = "devices/virtq/virtqtest"
	ourKVM  = "vmm/internal/kvm"
	devices = "devices"
)

// rules has every package, so that a new one has to say where it belongs. The
// first that fits a package counts.
var rules = []rule{
	{mem, []string{sys}, nil, "guest RAM is a leaf: everything stands on it"},
	{ourKVM, []string{sys}, []string{"github.com/bobuhiro11/gokvm/kvm"}, "the ioctls are a leaf; gokvm is only held against their layouts"},

	{virtq, []string{mem}, []string{mock}, "a ring sees guest RAM and nothing else"},
	{mock, []string{devices, virtq, mem}, []string{sys}, "the mock is the driver's side of a ring"},
	{devices, []string{virtq, mem, sys}, nil, "the interfaces between device, transport and machine know none of them"},
	{"devices/mmio", []string{devices, virtq, mem}, []string{mock, sys}, "a transport never sees a disk or a packet"},
	{"devices/blk", []string{devices, virtq, mem}, []string{mock, "devices/blk/disk", sys}, "a device never sees its transport, KVM or another device"},
	{"devices/blk/disk", []string{"devices/blk", sys}, nil, "files behind a disk know the device's interface only"},
	{"devices/vsock", []string{devices, virtq, mem}, []string{mock, "devices/vsock/vsocktest", sys}, "a device never sees its transport, KVM or the sockets behind it"},
	{"devices/vsock/muxer", []string{"devices/vsock", sys}, []string{"devices/vsock/vsocktest"}, "what is behind a socket device knows the device's interface only"},
	{"devices/vsock/vsocktest", []string{devices, virtq, mock, mem}, nil, "the guest's side of a socket device knows nothing of the device"},
	{"devices/...", []string{devices, virtq, mem, sys}, []string{mock, sys}, "a device never sees its transport, KVM, the machine or another device"},
	{"pvh/acpi", nil, nil, "tables are bytes, made from values"},
	{"pvh", []string{mem}, []string{sys}, "the loader is bytes in, bytes out: it makes no ioctl and knows no machine"},

	{"vmm/internal/bus", []string{devices}, nil, "a bus knows devices by their interface"},
	{"vmm/internal/cpu", []string{"pvh", "vmm/internal/bus", ourKVM, sys}, nil, "a vCPU knows the bus, not what is on it"},
	{"vmm/internal/jail", []string{"github.com/landlock-lsm/go-landlock/landlock/syscall", ourKVM, "golang.org/x/net/bpf", sys}, nil, "the jail takes KVM's request numbers and nothing else of the machine"},
	{"vmm/agent/agentd", []string{"vmm/agent", sys}, nil, "the guest's side is built for NetBSD, from little; how processes are made is injected"},
	{"vmm/agent", nil, nil, "what host and guest say to each other is frames over any stream"},
	{"vmm/demo", nil, nil, "the demo guest is bytes and their meaning"},
	{"vmm/client", nil, nil, "who speaks to a machine's socket needs no machine, and takes in none"},
	{"vmm", []string{devices, "devices/...", "pvh", "pvh/acpi", mem, "vmm/internal/...", sys}, []string{"vmm/demo"}, "vmm wires devices, pvh and kvm; it knows neither netstack, nor builder, nor a command"},

	{"netstack/policy", nil, nil, "what a guest may reach is decided without sockets, from values"},
	{"netstack/audit", nil, nil, "the log knows what is written into it and nothing of who writes"},
	{"netstack/dns", []string{"golang.org/x/net/dns/dnsmessage"}, []string{"netstack/policy"}, "the name server is bytes in, bytes out: what it asks and tells is injected"},
	{"netstack/publish", []string{sys}, nil, "publications relay from sockets of the host to a Dialer, whatever that is"},
	{"netstack/examples", nil, []string{"netstack/..."}, "the parts of a network put together as who embeds them does"},
	{"netstack/pcap", nil, nil, "a capture is of frames, whosever network they are"},
	{"netstack", []string{"gvisor.dev/gvisor/pkg/...", "netstack/policy", "netstack/audit", sys}, []string{"netstack/netstacktest", "netstack/dns"}, "the stack knows frames and sockets: neither the device in front of it nor the machine"},
	{"netstack/netstacktest", []string{"gvisor.dev/gvisor/pkg/...", sys}, []string{"netstack"}, "the guest's side of a network knows nothing of the network"},

	{"builder", []string{"builder/dialect", "builder/tree", "builder/blob", "builder/archive", "builder/image", "builder/spec"}, []string{sys}, "the engine knows trees and images; sets, machines, stores and toolboxes are injected"},
	{"builder/dialect", []string{"github.com/moby/buildkit/frontend/dockerfile/parser", "github.com/moby/buildkit/frontend/dockerfile/shell", "github.com/moby/patternmatcher", "github.com/moby/patternmatcher/ignorefile"}, nil, "a Dockerfile is text and what it means, without an image or a file of the host"},
	{"builder/spec", nil, nil, "what an image is is a document: who makes, keeps and runs images stands on it"},
	{"builder/sign", []string{"golang.org/x/crypto/blake2b", "golang.org/x/crypto/scrypt"}, nil, "a signature is over bytes, whatever they say"},
	{"builder/tree", nil, nil, "a tree is values: what they are written to and read from stands on it"},
	{"builder/blob", []string{"builder/tree", sys}, nil, "a store of contents knows a tree's contents and files of the host"},
	{"builder/archive", []string{"builder/tree", "builder/blob", "github.com/klauspost/compress/...", "github.com/mikelolasagasti/xz", sys}, []string{"builder/archive/archivetest"}, "an archive is bytes to a tree and back"},
	{"builder/archive/archivetest", []string{"github.com/klauspost/compress/zstd"}, nil, "archives for tests are made of bytes"},
	{"builder/image/ffs/ffstest", []string{"builder/tree"}, []string{"builder/image/ffs"}, "what checks the writer shares nothing with it"},
	{"builder/store", []string{"builder/spec", "builder/sign", "builder/tree", "builder/blob", "github.com/klauspost/compress/zstd", sys}, []string{"github.com/google/go-containerregistry/pkg/v1/layout"}, "a store of images knows what an image is, and neither who makes nor who runs it"},
	{"builder/oci", []string{"builder/spec", "builder/sign", "builder/store", "oras.land/oras-go/v2/...", "github.com/opencontainers/go-digest", "github.com/opencontainers/image-spec/specs-go/v1"},
		[]string{"builder/tree", "github.com/google/go-containerregistry/pkg/registry", "golang.org/x/crypto/bcrypt"}, "a registry is a place that images go to and come from"},
	{"builder/image/ffs", []string{"builder/tree"}, []string{"builder/image/ffs/ffstest"}, "a file system is made of a tree and goes to an io.WriterAt"},
	{"builder/image/gpt", nil, nil, "a partition table is bytes and their meaning"},
	{"builder/image", []string{"builder/tree", "builder/image/ffs", "builder/image/gpt"}, []string{"builder/image/ffs/ffstest"}, "an image is a tree in a file, and knows neither who builds nor who boots it"},
	{"builder/runvm/steplog", nil, nil, "what host and guest of a build step have between them is bytes and their meaning"},
	{"builder/runvm", []string{"builder", "builder/archive", "builder/blob", "builder/image", "builder/tree", "builder/runvm/steplog", "builder/toolbox/devnodes", "vmm"}, []string{"builder/toolbox", "bench/netbsd", "vmm/demo", "netstack"}, "a step's machine is made of a tree, by vmm's public API"},
	{"builder/toolbox/devnodes", nil, nil, "numbers of devices are numbers"},
	{"builder/toolbox", []string{"builder/tree", "builder/toolbox/devnodes", "github.com/klauspost/compress/zstd"}, nil, "what images begin with is made of trees and programs, without a machine"},
	{"builder/fetch/files", nil, nil, "what was fetched is looked at without an HTTP client"},
	{"builder/fetch", []string{"builder/fetch/files"}, nil, "a download is a file that is complete and has its digest, whatever is in it"},
	{"builder/sets", []string{"builder/tree", "builder/blob", "builder/archive", "builder/fetch", "builder/fetch/files", sys}, []string{"builder/archive/archivetest"}, "sets are archives that were fetched, and nothing of what is built of them"},

	{"cmd/smolinit", []string{"builder/runvm/steplog", "builder/toolbox/devnodes", "vmm/agent", "vmm/agent/agentd", sys}, nil, "the guest's init is built for NetBSD, from little: nothing of the monitor is in it"},
	{"cmd/smolvmm/internal/network", []string{"vmm", "netstack", "netstack/..."}, []string{"vmm/demo", "golang.org/x/net/dns/dnsmessage"}, "the one place where the machine meets its network"},
	{"cmd/smolvmm/internal/build", []string{"builder", "builder/...", "cmd/smolvmm/internal/kernels", "cmd/smolvmm/internal/kernels/mirror", "cmd/smolvmm/internal/network", "vmm"}, nil, "the one place where the builder meets the store, the mirrors and the machines"},
	{"cmd/smolvmm/internal/kernels", []string{"builder/fetch/files"}, nil, "a cached kernel is found without an HTTP client"},
	{"cmd/smolvmm/internal/kernels/mirror", []string{"builder/fetch", "builder/fetch/files", "cmd/smolvmm/internal/kernels"}, nil, "kernels are files that are fetched"},
	{"cmd/smolvmm/internal/run", []string{"builder/spec", "builder/store", "builder/sign"}, nil, "what an image says of its machine is read from the store, and no machine is made here"},
	{"cmd/smolvmm/internal/api", []string{"vmm", "vmm/client", sys}, nil, "the server knows a machine by an interface; its words are the client's"},
	{"cmd/smolvmm/internal/images", []string{"builder", "builder/sets", "builder/spec", "builder/sign", "builder/store", "builder/oci", "builder/blob", "builder/tree", "github.com/spf13/pflag", sys}, []string{"github.com/google/go-containerregistry/pkg/registry"}, "the verbs of images know stores and registries, and no machine"},
	{"cmd/smolvmm/internal/bench", []string{"bench/suite", "github.com/spf13/pflag"}, nil, "the verb is flags; what is measured, and how, is the suite's"},
	{"cmd/smolvmm/internal/cli", []string{"cmd/smolvmm/internal/kernels", "cmd/smolvmm/internal/machines", "cmd/smolvmm/internal/network", "vmm", "vmm/demo", "github.com/spf13/pflag", sys}, []string{"bench/testimg", "bench/lab/...", "cmd/smolvmm/internal/clitest"}, "what both programs do; each of a machine's starts pays for what is taken in here"},
	{"cmd/smolvmm/internal/clitest", []string{"vmm", "vmm/demo", sys}, nil, "tests see the programs from outside"},
	{"cmd/smolvmm/internal/...", []string{"vmm", "vmm/client", sys}, nil, "what a verb does knows the machine by vmm's public API"},
	{"cmd/smolvmm", []string{"cmd/smolvmm/internal/cli"}, nil, "smolvmm is what both programs do, and nothing else"},
	{"cmd/...", []string{"vmm", "vmm/agent", "vmm/client", "vmm/demo", "cmd/smolvmm/internal/...", "github.com/spf13/pflag", "golang.org/x/term", sys}, []string{"bench/testimg", "bench/lab/...", "builder/spec", "builder/store", "vmm/agent/agentd"}, "a command drives machines by vmm's public API only"},

	{"bench/linux/...", []string{"bench/linux/...", "bench/netbsd", "vmm/agent/agentd", "github.com/u-root/u-root/pkg/cpio", sys}, []string{"bench/internal/agenttest", "vmm", "netstack"}, "a guest is made of the lab's kernel and judged from both sides"},
	{"bench/lab/...", []string{"bench/lab/...", "github.com/u-root/u-root/pkg/cpio", "github.com/pierrec/lz4/v4", sys}, nil, "the lab runs any program, so it knows nothing of ours"},
	{"bench/build/...", []string{"builder/tree", "builder/archive", "builder/image", "bench/internal/stats", "bench/suite/build", "bench/testimg", sys}, []string{"bench/netbsd", "builder/archive/archivetest", "builder/image/ffs", "builder/image/ffs/ffstest", "builder/toolbox"}, "images are measured and judged from outside"},
	{"bench/...", []string{"vmm", "vmm/client", "vmm/agent", "vmm/demo", "bench/...", "cmd/smolvmm/internal/kernels", sys}, []string{"pvh"}, "measurements look at the machine from outside"},
	{"", nil, nil, "the module's root has tests only"},
}

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
	Deps                               []string // what a build takes in, tests aside
}

// listed has what is built for Linux, and behind it what differs for a guest.
var listed = sync.OnceValues(func() ([]pkg, error) {
	host, err := goList("linux", "./...")
	if err != nil {
		return nil, err
	}
	guest, err := goList("netbsd", "./cmd/smolinit/...", "./bench/testimg/guestcheck/...", "./bench/netbsd/netcheck/...", "./bench/netbsd/agentcheck/...", "./bench/build/ffscheck/...")
	return append(host, guest...), err
})

func goList(goos string, patterns ...string) ([]pkg, error) {
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps"}, patterns...)...)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	out, err := cmd.Output()
	if err != nil {
		var e *exec.ExitError
		if errors.As(err, &e) {
			return nil, errors.New(string(e.Stderr))
		}
		return nil, err
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
}

func packages(t *testing.T) []pkg {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("NOT RUN: the rules of the tree need the go command: %v", err)
	}
	ps, err := listed()
	if err != nil {
		t.Fatal(err)
	}
	if len(ps) < len(rules)/2 {
		t.Fatalf("go list knows %d packages only", len(ps))
	}
	return ps
}

// relative is the package's name as the rules have it.
func relative(importPath string) string {
	if importPath == module {
		return ""
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func fits(pattern, name string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == dir || strings.HasPrefix(name, dir+"/")
	}
	return pattern == name
}

func fitsAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return fits(p, name) })
}

// standard: a path of the standard library has no dot in its first element.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// judge gives the rule that a package's import breaks, or "".
func judge(importer, imported string, test bool) string {
	name := relative(imported)
	if standard(imported) || importer == name {
		return ""
	}
	for _, r := range rules {
		if !fits(r.pkg, importer) {
			continue
		}
		if fitsAny(r.may, name) || test && fitsAny(r.tests, name) {
			return ""
		}
		return importer + " imports " + name + ": " + r.why
	}
	return importer + " has no rule: say in deps_test.go and docs/design.md what it may import, and why"
}

// TestImports holds each package to its rule.
func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		name := relative(p.ImportPath)
		for _, imp := range p.Imports {
			if msg := judge(name, imp, false); msg != "" {
				t.Error(msg)
			}
		}
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			if msg := judge(name, imp, true); msg != "" {
				t.Errorf("a test of %s", msg)
			}
		}
	}
}

// TestRulesBite: what the rules are there to stop, they stop.
func TestRulesBite(t *testing.T) {
	own := func(name string) string { return module + "/" + name }
	for _, c := range []struct {
		importer, imported string
		test, ok           bool
	}{
		{"devices/blk", own("vmm"), false, false},
		{"devices/blk", own(ourKVM), true, false},
		{"devices/blk", own("devices/uart"), false, false},
		{"devices/blk", own(mock), false, false},
		{"devices/blk", own(mock), true, true},
		{"devices/net", own("devices/blk"), false, false},
		{virtq, own(devices), false, false},
		{"pvh", own(ourKVM), false, false},
		{"pvh", sys, false, false},
		{mem, own(virtq), false, false},
		{"vmm", own("cmd/smolvmm"), false, false},
		{"vmm", own("netstack"), false, false},
		{"vmm", "gvisor.dev/gvisor/pkg/tcpip", false, false},
		{"vmm", own("vmm/demo"), false, false},
		{"cmd/smolvmm", own("devices/blk"), false, false},
		{"cmd/smolinit", own("vmm/guestmem"), false, false},
		{"unheard/of", own("vmm"), false, false},
		{"unheard/of", "fmt", false, true},
	} {
		if msg := judge(c.importer, c.imported, c.test); (msg == "") != c.ok {
			t.Errorf("%s imports %s (test: %v): %q, want ok=%v", c.importer, c.imported, c.test, msg, c.ok)
		}
	}
}

// TestReach holds what a whole program or library takes in: the monitor's
// memory is counted in megabytes, and smolinit shares a small guest.
func TestReach(t *testing.T) {
	all := packages(t)
	for _, c := range []struct {
		pkg string
		no  []string
		why string
	}{
		{pkg: "vmm", no: []string{"net/...", "net", "gvisor.dev/...", "flag", "os/signal", "os/exec", "testing/..."},
			why: "whoever embeds vmm gets no network stack, no flags, no signal handlers and no processes with it"},
		{pkg: "pvh", no: []string{"net", "os/exec", "log/...", "encoding/json"}, why: "the loader needs bytes only"},
		{pkg: "cmd/smolvmm", no: []string{"net/http/...", "net/textproto", "mime/...", "crypto/tls", "crypto/x509", "oras.land/...", "github.com/moby/...", "github.com/klauspost/...", "github.com/mikelolasagasti/...",
			"google.golang.org/protobuf/...", "github.com/u-root/...", "testing/...", "text/template", "html/template", "encoding/gob", "vmm/client", "builder", "builder/store"},
			why: "every start of a machine pays for what is linked, in initialisation and page faults, used or not: what is not a boot belongs into smolvmm-full"},
		{pkg: "cmd/smolvmm/smolvmm-full", no: []string{"testing/...", "net/rpc", "text/template", "html/template", "expvar", "net/http/pprof"},
			why: "the command stays small; the last ones also keep the linker from dropping unused methods"},
	} {
		found := false
		for _, p := range all {
			if relative(p.ImportPath) != c.pkg {
				continue
			}
			found = true
			for _, d := range p.Deps {
				if fitsAny(c.no, relative(d)) {
					t.Errorf("%s takes in %s: %s", c.pkg, d, c.why)
				}
			}
		}
		if !found {
			t.Errorf("no package %s: has it moved?", c.pkg)
		}
	}
	for _, p := range all {
		for _, d := range p.Deps {
			if strings.HasPrefix(d, "gvisor.dev/") && !fits("netstack/...", relative(p.ImportPath)) && !fits("cmd/smolvmm/...", relative(p.ImportPath)) {
				t.Errorf("%s takes in %s: netstack alone imports gVisor, and the command alone puts it into a machine", p.ImportPath, d)
			}
			if strings.HasPrefix(d, "github.com/bobuhiro11/") {
				t.Errorf("%s takes in %s: gokvm serves tests and measurements only", p.ImportPath, d)
			}
		}
	}
}
