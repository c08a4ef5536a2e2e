package netbsd

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto/sha256"

	"github.com/smolvmm/smolvmm/bench/netbsd/peer"
	"github.com/smolvmm/smolvmm/bench/testimg"
)

// netImage is a root disk with smolinit and netcheck.
func netImage(t *testing.T) string {
	t.Helper()
	spec, err := testimg.Default(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check, err := testimg.Program(t.Context(), testimg.Module+"/bench/netbsd/netcheck")
	if err != nil {
		t.Fatal(err)
	}
	spec.Files = append(spec.Files, testimg.File{Path: "/bin/netcheck", Data: check, Mode: 0o755})
	image := filepath.Join(t.TempDir(), "root.img")
	if err := testimg.Build(t.Context(), image, spec); err != nil {
		t.Fatal(err)
	}
	return image
}

// host is the servers that a guest talks to.
type host struct {
	http, half, udp string // ports
}

// serveHost starts them at an address of this machine.
func serveHost(t *testing.T, at string, size int64) host {
	t.Helper()
	port := func(a net.Addr) string {
		_, p, err := net.SplitHostPort(a.String())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", net.JoinHostPort(at, "0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	web, half := listen(), listen()
	srv := &http.Server{Handler: peer.Handler(size, func() {})}
	go func() { _ = srv.Serve(web) }()
	t.Cleanup(func() { srv.Close() })
	go peer.Half(half)
	udp, err := net.ListenPacket("udp", net.JoinHostPort(at, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	go peer.Echo(udp)
	return host{port(web.Addr()), port(half.Addr()), port(udp.LocalAddr())}
}

// guestRun is a machine whose console is read while it runs.
type guestRun struct {
	cmd     *exec.Cmd
	mu      sync.Mutex
	console bytes.Buffer
	wrote   chan struct{} // something is new on the console
	ended   chan struct{}
	err     error
}

func (g *guestRun) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case g.wrote <- struct{}{}:
	default:
	}
	return g.console.Write(b)
}

func (g *guestRun) said() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.console.String()
}

// startGuest starts a machine's monitor.
func startGuest(ctx context.Context, t *testing.T, argv []string) *guestRun {
	t.Helper()
	g := &guestRun{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), wrote: make(chan struct{}, 1), ended: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = g, g
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { g.err = g.cmd.Wait(); close(g.ended) }()
	return g
}

// waitFor waits for words on the console, or the machine's end.
func (g *guestRun) waitFor(words string) bool {
	for !strings.Contains(g.said(), words) {
		select {
		case <-g.wrote:
		case <-g.ended:
			return strings.Contains(g.said(), words)
		}
	}
	return true
}

// status waits for the end and gives the monitor's exit status.
func (g *guestRun) status(t *testing.T) int {
	t.Helper()
	<-g.ended
	var ee *exec.ExitError
	if g.err != nil && (!errors.As(g.err, &ee) || !ee.Exited()) {
		t.Errorf("the monitor: %v", g.err)
	}
	return g.cmd.ProcessState.ExitCode()
}

// servedSize is netcheck's -served: what goes each way through a published port.
const servedSize = 4 << 20

// visit fetches the guest's bytes, gives it others, and ends its server.
func visit(ctx context.Context, client *http.Client, url string, size int64) (string, error) {
	do := func(method, path string, body io.Reader, length int64) (string, error) {
		req, err := http.NewRequestWithContext(ctx, method, url+path, body)
		if err != nil {
			return "", err
		}
		req.ContentLength = length
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return "", fmt.Errorf("%s %s: %s", method, path, resp.Status)
		}
		if path == "/bytes" {
			h := sha256.New()
			_, err = io.Copy(h, resp.Body)
			return hex.EncodeToString(h.Sum(nil)), err
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return string(b), err
	}
	want := peer.Sum(size)
	var said []string
	for _, c := range []struct {
		method, path string
		body         io.Reader
		length       int64
		want         string
	}{
		{http.MethodGet, "/", nil, 0, "hello\n"},
		{http.MethodGet, "/bytes", nil, 0, want},
		{http.MethodPut, "/put", io.LimitReader(peer.Bytes(), size), size, want},
		{http.MethodGet, "/end", nil, 0, ""},
	} {
		begun := time.Now()
		got, err := do(c.method, c.path, c.body, c.length)
		if err != nil {
			return "", fmt.Errorf("%s %s: %w", c.method, c.path, err)
		}
		if got != c.want {
			return "", fmt.Errorf("%s %s: %q, want %q", c.method, c.path, got, c.want)
		}
		said = append(said, fmt.Sprintf("%s %s %v", c.method, c.path, time.Since(begun).Round(time.Millisecond)))
	}
	return strings.Join(said, ", "), nil
}

// TestNetworkUnderQEMU holds smolinit's network against another monitor's: its
// DHCP server, its routers' advertisements and its way to the host.
func TestNetworkUnderQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD in emulation")
	}
	kernel, err := Kernel()
	need(t, err)
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("NOT RUN: no qemu-system-x86_64")
	}
	const size = 20 << 20
	image := netImage(t)
	dir := t.TempDir()
	for _, c := range []struct {
		name, init string
		args       func(h host) []string
		serves     bool
		away       bool // the other end of the wire is closed
		status     int
		says       []string
	}{
		{name: "by itself", serves: true, says: []string{
			"smolinit: vioif0: DHCP: 10.0.2.15/24, gateway 10.0.2.2, DNS 10.0.2.3", "smolinit: vioif0: router advertisement: fec0::",
			"netcheck: get: ", "netcheck: put: ", "netcheck: echo: ", "netcheck: ping: ", "netcheck: serve: "},
			args: func(h host) []string {
				return []string{"-resolv", "nameserver 10.0.2.3\n", "-ping", "10.0.2.2", "-echo", "10.0.2.2:" + h.udp, "-refused", "10.0.2.2:1",
					"-half", "10.0.2.2:" + h.half, "-many", "http://10.0.2.2:" + h.http + "/", "-get", "http://10.0.2.2:" + h.http + "/bytes",
					"-put", "http://10.0.2.2:" + h.http + "/put", "-serve", ":8080"}
			}},
		{name: "static", init: `"net": [{"address": "10.0.2.77/24", "gateway": "10.0.2.2", "dns": ["10.0.2.3"], "search": ["a.example"], "mtu": 1500}]`,
			says: []string{"netcheck: get: "},
			args: func(h host) []string {
				return []string{"-resolv", "search a.example\nnameserver 10.0.2.3\n", "-get", "http://10.0.2.2:" + h.http + "/bytes"}
			}},
		{name: "own name server", init: `"net": [{"dhcp": true, "slaac": false, "dns": ["10.0.2.4"]}]`,
			says: []string{"smolinit: vioif0: DHCP: "},
			args: func(h host) []string { return []string{"-resolv", "nameserver 10.0.2.4\n", "-refused", "10.0.2.2:1"} }},
		{name: "nobody answers", away: true, init: `"net": [{"dhcp": true, "address": "10.0.2.77/24"}]`,
			says: []string{"smolinit: vioif0: no DHCP server answered within 3s", "smolinit: vioif0: taking the configured 10.0.2.77/24", "netcheck: closed: "},
			args: func(h host) []string { return []string{"-closed", "10.0.2.2:" + h.http} }},
		{name: "nothing is wanted", init: `"net": []`, says: []string{"netcheck: closed: "},
			args: func(h host) []string { return []string{"-closed", "10.0.2.2:" + h.http} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			h := serveHost(t, "127.0.0.1", size)
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			published := free.Addr().String()
			free.Close()
			argv := append([]string{"netcheck", "-size", strconv.Itoa(size)}, c.args(h)...)
			init := fmt.Sprintf(`{"argv": ["%s"]`, strings.ReplaceAll(strings.Join(argv, `","`), "\n", `\n`))
			if c.init != "" {
				init += ", " + c.init
			}
			item := filepath.Join(dir, "init.json")
			if err := os.WriteFile(item, []byte(init+"}"), 0o600); err != nil {
				t.Fatal(err)
			}
			netdev := "user,id=n,hostfwd=tcp:" + published + "-:8080"
			if c.away {
				netdev = "hubport,id=n,hubid=0"
			}
			g := startGuest(ctx, t, []string{qemu,
				"-M", "microvm,x-option-roms=off,rtc=on,acpi=off,pic=off,auto-kernel-cmdline=on,accel=tcg", "-m", "256", // its CPU max has a leaf 0x40000010 that is wrong in emulation
				"-kernel", kernel, "-append", "root=ld0a console=com -z", "-display", "none", "-serial", "stdio", "-no-reboot", "-nodefaults",
				"-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=d", "-drive", "format=raw,id=d,if=none,snapshot=on,file=" + image,
				"-device", "virtio-net-device,netdev=n", "-netdev", netdev,
				"-device", "isa-debug-exit,iobase=0x501,iosize=1", "-fw_cfg", "name=opt/smolvmm/init.json,file=" + item})
			if c.serves && g.waitFor("netcheck: serving at") {
				said, err := visit(ctx, http.DefaultClient, "http://"+published, servedSize)
				if err != nil {
					t.Error(err)
				}
				t.Log(said)
			}
			if got := g.status(t); got != 2*c.status+1 {
				t.Errorf("status %d, want %d", got, 2*c.status+1)
			}
			for _, s := range c.says {
				if !strings.Contains(g.said(), s) {
					t.Errorf("the console lacks %q", s)
				}
			}
			if t.Failed() || testing.Verbose() {
				t.Log(g.said())
			}
		})
	}
}
