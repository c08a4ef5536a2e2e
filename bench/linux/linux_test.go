package linux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/linux/streams"
	"github.com/smolvmm/smolvmm/bench/netbsd"
	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/vmm"
)

// What the guest's program knows as well.
const (
	echoPort  = 7
	donePort  = 99
	hostPort  = 1024
	totalEcho = 1 << 20
	half      = 2 << 20
)

// inLab is where the second run of this test, in the lab, finds its files.
const inLab = "/linux"

// TestLinux boots Debian's stock kernel, which knows devices from ACPI only, and
// has its own drivers use each of them. Where this machine's KVM cannot run a full
// kernel, the test runs itself in the lab.
func TestLinux(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots Linux")
	}
	if _, err := os.Stat(inLab + "/vmlinux"); err == nil && netbsd.InLab() {
		boot(t, inLab+"/vmlinux", inLab+"/initrd", "socat")
		return
	}
	dir := t.TempDir()
	lab, vmlinux, modules := parts(t, dir)
	guest, initrd := filepath.Join(dir, "guest"), filepath.Join(dir, "initrd")
	need(t, netbsd.Program(t.Context(), guest, "bench/linux/guest"))
	archive(t, initrd, map[string]string{"init": guest}, modules, "virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport")
	socat, err := exec.LookPath("socat")
	if err != nil {
		t.Log("NOT RUN: the part with socat: it is not installed")
	}
	why := netbsd.KVM()
	if why == nil {
		boot(t, vmlinux, initrd, socat)
		return
	}
	t.Logf("in the lab: %v", why)
	args := []string{"-timeout", "220s", "-file", vmlinux + ":" + inLab + "/vmlinux", "-file", initrd + ":" + inLab + "/initrd"}
	if socat != "" {
		args = append(args, "-with", socat)
	}
	again(t, lab, args)
}

// need skips where something is missing here.
func need(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, netbsd.ErrMissing) {
		t.Skip("NOT RUN: " + err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// parts are the lab's runner, its kernel and the kernel's modules.
func parts(t *testing.T, dir string) (lab, vmlinux, modules string) {
	t.Helper()
	lab, err := netbsd.Lab(t.Context(), dir)
	need(t, err)
	vmlinux, modules, err = Kernel(t.Context(), lab)
	need(t, err)
	return lab, vmlinux, modules
}

func archive(t *testing.T, file string, programs map[string]string, modules string, names ...string) {
	t.Helper()
	f, err := os.Create(file)
	need(t, err)
	need(t, Initramfs(f, programs, modules, names...))
	need(t, f.Close())
}

// again runs the test that calls it in the lab.
func again(t *testing.T, lab string, args []string) {
	t.Helper()
	self, err := os.Executable()
	need(t, err)
	args = append([]string{"-m", "2560"}, args...)
	cmd := exec.CommandContext(t.Context(), lab, append(args, self, "-test.run=^"+t.Name()+"$", "-test.v")...)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// console keeps what the guest prints.
type console struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ready chan struct{} // closed at the guest's "ready"
	once  sync.Once
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	if bytes.Contains(c.text.Bytes(), []byte("guest: ok ready")) {
		c.once.Do(func() { close(c.ready) })
	}
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.text.String(), "\r", "")
}

// image makes a disk of random bytes.
func image(t *testing.T, name string, size int) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size), name[0]}).Read(content)
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func boot(t *testing.T, kernel, initrd, socat string) {
	rw, rwBytes := image(t, "written", 2*half)
	ro, roBytes := image(t, "only-read", 1<<20)
	under, underBytes := image(t, "under", 2*half)
	network, err := netstack.New(netstack.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	tcp, err := network.Listen("tcp", fmt.Sprintf("gateway:%d", echoPort))
	if err != nil {
		t.Fatal(err)
	}
	go serve(t, tcp)
	sock := filepath.Join(t.TempDir(), "v")
	unixListener, err := net.Listen("unix", fmt.Sprintf("%s_%d", sock, hostPort))
	if err != nil {
		t.Fatal(err)
	}
	defer unixListener.Close()
	go serve(t, unixListener)

	out := &console{ready: make(chan struct{})}
	m, err := vmm.New(vmm.Config{
		Kernel: vmm.File{Path: kernel}, Initrds: []vmm.File{{Path: initrd}}, ACPI: true, CPUs: 2, Memory: 512 << 20,
		Cmdline: "console=ttyS0 root=none panic=-1 tsc=reliable mitigations=off cryptomgr.notests net.ifnames=0",
		Disks:   []vmm.Disk{{Path: rw}, {Path: ro, ReadOnly: true}, {Path: under, Overlay: true}},
		Nets:    []vmm.Net{{Backend: network, MAC: [6]byte{2, 0, 0, 0, 0, 1}, QueuePairs: 2}},
		Vsock:   &vmm.Vsock{CID: 42, Path: sock}, ConsoleOut: out,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	ended := make(chan vmm.Exit, 1)
	go func() {
		exit, err := m.Run(ctx)
		if err != nil {
			t.Error(err)
		}
		ended <- exit
	}()
	select {
	case <-out.ready:
		t.Logf("ready after %v", time.Since(begin))
		callGuest(ctx, t, m, network, sock, socat)
	case e := <-ended:
		t.Fatalf("%v\n%s", e, out)
	}
	exit := <-ended
	// Linux left for the BIOS, of which there is so much.
	if exit.End != vmm.EndReboot || exit.Detail != "reset control register" {
		t.Errorf("the end is %v, want a reset by the reset control register", exit)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	text := out.String()
	t.Log(text)
	for _, want := range []string{
		"Using ACPI (MADT) for SMP configuration information", "smp: Brought up 1 node, 2 CPUs",
		"00:00: ttyS0 at I/O 0x3f8", "rtc_cmos 00:01: registered as rtc0", "guest: ok CID 42",
		fmt.Sprintf("guest: ok vda written %d bytes, sha256 %x", len(rwBytes), sha256.Sum256(rwBytes)),
		fmt.Sprintf("guest: ok vdb only-read %d bytes, sha256 %x", len(roBytes), sha256.Sum256(roBytes)),
		fmt.Sprintf("guest: ok vdc under %d bytes, sha256 %x", len(underBytes), sha256.Sum256(underBytes)),
		"guest: ok disks,", "guest: ok two pairs of queues", "guest: ok network,", "guest: ok vsock,",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the console lacks %q", want)
		}
	}
	// Words with which Linux complains of tables, devices and interrupts.
	for _, bad := range regexp.MustCompile(`(?im)^.*(ACPI.*(error|warning|invalid|exception)|nobody cared|call trace|virtio.*(fail|error|not a|invalid)|I/O error|guest: failed).*$`).FindAllString(text, -1) {
		t.Errorf("the guest says %q", bad)
	}
	checkDisks(t, rw, rwBytes, under, underBytes)
	st, vs := m.NetStats()[0], m.VsockStats()
	t.Logf("interface: %+v\nvsock: %+v", st, vs)
	if st.TX.Malformed+st.RX.Malformed != 0 {
		t.Errorf("malformed frames: %+v", st)
	}
}

// checkDisks holds the images against what the guest was to write.
func checkDisks(t *testing.T, rw string, before []byte, under string, underBytes []byte) {
	t.Helper()
	got, err := os.ReadFile(rw)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(before)
	for i := range half {
		want[half+i] = ^want[i]
	}
	const mib = 1 << 20
	clear(want[mib : 2*mib])
	// What a discard leaves is not said.
	if !bytes.Equal(got[mib:], want[mib:]) {
		t.Error("the image is not what the guest wrote")
	}
	if got, err := os.ReadFile(under); err != nil || !bytes.Equal(got, underBytes) {
		t.Errorf("the image below the overlay has changed, %v", err)
	}
}

// callGuest has the host connect to the guest, in every way there is.
func callGuest(ctx context.Context, t *testing.T, m *vmm.Machine, network *netstack.Stack, sock, socat string) {
	t.Helper()
	defer func() { // whatever happened: the guest waits for this
		c, err := m.DialVsock(ctx, donePort)
		if err != nil {
			t.Errorf("the last call: %v", err)
			m.Stop()
			return
		}
		c.Close()
	}()
	timed := func(what string, dial func() (conn, error)) {
		t.Helper()
		begin := time.Now()
		c, err := dial()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		defer c.Close()
		if err := exchange(c, totalEcho); err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		t.Logf("%s: %d bytes there and back, %v", what, totalEcho, time.Since(begin).Round(time.Millisecond))
	}
	timed("TCP to the guest", func() (conn, error) {
		c, err := network.DialContext(ctx, "tcp", fmt.Sprintf("guest:%d", echoPort))
		if err != nil {
			return nil, err
		}
		return c.(conn), nil
	})
	timed("vsock to the guest", func() (conn, error) { return m.DialVsock(ctx, echoPort) })
	timed("vsock to the guest by its socket", func() (conn, error) { return streams.Connect(sock, streams.EchoPort, 0) })
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			c, err := streams.Connect(sock, streams.EchoPort, 0)
			if err == nil {
				err = exchange(c, 10_000)
				c.Close()
			}
			if err != nil {
				t.Errorf("one of 50 connections: %v", err)
			}
		})
	}
	all.Wait()
	if c, err := m.DialVsock(ctx, 9999); !errors.Is(err, vmm.ErrVsockRefused) {
		t.Errorf("a port that nobody in the guest has: %v, %v", c, err)
	}
	if path, err := exec.LookPath("socat"); err == nil && socat != "" {
		cmd := exec.CommandContext(ctx, path, "-t", "60", "-", "UNIX-CONNECT:"+sock)
		cmd.Stdin = strings.NewReader(fmt.Sprintf("CONNECT %d\nhello\n", echoPort))
		if out, err := cmd.CombinedOutput(); err != nil || !regexp.MustCompile(`^OK \d+\nhello\n$`).Match(out) {
			t.Errorf("socat: %v, %q", err, out)
		}
	}
}

// conn is what the streams here have in common.
type conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// exchange sends bytes and wants them back, to the end of both directions.
func exchange(c conn, n int) error {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	back, err := io.ReadAll(c)
	if err = errors.Join(<-sent, err); err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%d bytes came back of %d, or others", len(back), n)
	}
	return nil
}

// serve sends back what comes, until the listener is closed.
func serve(t *testing.T, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := io.Copy(c, c); err != nil {
				t.Errorf("echo: %v", err)
				return
			}
			if err := c.(conn).CloseWrite(); err != nil {
				t.Errorf("end of echo: %v", err)
			}
		}()
	}
}
