package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/vmm/demo"
)

// vsockDial reaches a port of the guest's as a client of Firecracker does.
func vsockDial(t *testing.T, path string, port int) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	deadline(t, c)
	fmt.Fprintf(c, "CONNECT %d\n", port)
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK ") {
		t.Fatalf("%q, %v", line, err)
	}
	return c.(*net.UnixConn), r
}

// TestVsock: a confined machine's sockets, by which the host reaches the guest.
func TestVsock(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	for _, confine := range []string{"trap", "off"} {
		path := filepath.Join(t.TempDir(), "v.sock")
		p := clitest.Start(t, "demo", "-v", "-confine", confine, "-net", "none", "-vsock", "3,"+path, "vsock=serve")
		p.Errs.Wait(t, "kernel loaded") // the socket is there before
		if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%v, %v", st, err)
		}
		c, r := vsockDial(t, path, 52)
		const size = 200_000
		b := make([]byte, size)
		demo.FillStream(b, 0)
		var sum demo.StreamSum
		sum.Write(b)
		io.WriteString(c, "sink\n")
		c.Write(b)
		c.CloseWrite()
		if got, err := io.ReadAll(r); err != nil || string(got) != fmt.Sprintf("%d %016x\n", size, sum.Sum64()) {
			t.Errorf("%q, %v", got, err)
		}
		c, _ = vsockDial(t, path, 52)
		io.WriteString(c, "quit\n")
		p.Ended(0)
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	}
}

// TestVsockOut: what a confined guest connects to reaches a socket made after it began.
func TestVsockOut(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	path := filepath.Join(t.TempDir(), "v.sock")
	l, err := net.Listen("unix", path+"_5000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		n, _ := io.Copy(io.Discard, c)
		c.Close()
		got <- n
	}()
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "-net", "none", "-vsock", "3,"+path, "vsock=up,port=5000,bytes=100000"))
	if n := <-got; r.Status != 0 || n != 100000 {
		t.Errorf("%d bytes, %+v", n, r)
	}
	// And nobody there.
	r = clitest.Finish(t, clitest.Smolvmm(t, "demo", "-confine", "trap", "-net", "none", "-vsock", "3,"+path, "vsock=up,port=5001,bytes=100000"))
	if r.Status != 1 || !strings.Contains(r.Out, "port 5001 of the host: refused") {
		t.Errorf("%+v", r)
	}
}

// TestVsockKilled: the keeper removes a killed machine's socket; one that is left over
// is replaced, one in use is not.
func TestVsockKilled(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "v.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	p := clitest.Start(t, "demo", "-v", "-net", "none", "-vsock", "3,"+path, "vsock=serve")
	p.Errs.Wait(t, "kernel loaded") // the socket is there before
	if r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-net", "none", "-vsock", "3,"+path, "hello")); r.Status != 2 || !strings.Contains(r.Err, "another program listens there") {
		t.Errorf("%+v", r)
	}
	if err := p.Kill(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(late) {
			t.Fatal("the socket is still there")
		}
	}
}

// TestVsockSocat: a client that knows nothing of us.
func TestVsockSocat(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	socat, err := exec.LookPath("socat")
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	path := filepath.Join(t.TempDir(), "v.sock")
	p := clitest.Start(t, "demo", "-v", "-net", "none", "-vsock", "3,"+path, "vsock=serve")
	p.Errs.Wait(t, "kernel loaded") // the socket is there before
	c := exec.Command(socat, "-t20", "-", "UNIX-CONNECT:"+path)
	c.Stdin = strings.NewReader("CONNECT 52\nsource 20000\n")
	out, err := c.Output()
	line, rest, _ := strings.Cut(string(out), "\n")
	want := make([]byte, 20000)
	demo.FillStream(want, 0)
	if err != nil || !strings.HasPrefix(line, "OK ") || rest != string(want) {
		t.Errorf("%q and %d bytes, %v", line, len(rest), err)
	}
	c2, _ := vsockDial(t, path, 52)
	io.WriteString(c2, "quit\n")
	p.Ended(0)
}

// TestVsockFlag: what cannot be meant is told in one line.
func TestVsockFlag(t *testing.T) {
	for _, spec := range []string{"3", "3,", ",x", "x,/y", "2,/x", "4294967295,/x", "-1,/x"} {
		if _, err := parseVsock(spec); err == nil {
			t.Errorf("%q was taken", spec)
		}
	}
	if v, err := parseVsock("3,/tmp/a,b"); err != nil || v.CID != 3 || v.Path != "/tmp/a,b" {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := parseVsock(""); err != nil || v != nil {
		t.Errorf("%+v, %v", v, err)
	}
}
