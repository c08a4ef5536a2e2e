//go:build linux

// Command guest is the init of a Linux guest: it loads the stock virtio drivers
// and uses the devices that they find. With guest=agent on the command line it has
// smolinit serve the agent, with guest=streams it serves what bench/vsock measures.
// What it says goes to the console, a line
// "guest: ok …" for each thing that worked; the first that does not ends it.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/bench/linux/streams"
	"github.com/smolvmm/smolvmm/vmm/agent/agentd"
)

func main() {
	if filepath.Base(os.Args[0]) == "reboot" {
		askInit()
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: runs as a guest's init only")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("guest: FAILED:", err)
	}
	// The console's last bytes are out when the file is closed and drained.
	unix.Sync()
	if err := unix.IoctlSetInt(1, unix.TCSBRK, 1); err != nil {
		fmt.Println("guest: drain:", err)
	}
	fmt.Println("guest: reboot:", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	select {}
}

func ok(format string, args ...any) { fmt.Printf("guest: ok "+format+"\n", args...) }

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	switch words := strings.Fields(string(cmdline)); {
	case slices.Contains(words, "guest=agent"):
		return serveAgent()
	case slices.Contains(words, "guest=streams"):
		return serveStreams()
	}
	if err := listDevices(); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		run  func() error
	}{{"disks", disks}, {"network", network}, {"vsock", vsock}} {
		begin := time.Now()
		if err := f.run(); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		ok("%s, %v", f.name, time.Since(begin).Round(time.Millisecond))
	}
	irq, err := os.ReadFile("/proc/interrupts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(irq)) {
		if strings.Contains(line, "virtio") || strings.Contains(line, "ttyS0") {
			fmt.Print("guest: irq ", line)
		}
	}
	return nil
}

func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

// listDevices tells each device's driver, and the features that both agreed on.
func listDevices() error {
	devs, err := filepath.Glob("/sys/bus/virtio/devices/*")
	if err != nil {
		return err
	}
	for _, d := range devs {
		driver, err := os.Readlink(d + "/driver")
		if err != nil {
			return err
		}
		features, err := os.ReadFile(d + "/features")
		if err != nil {
			return err
		}
		where, err := filepath.EvalSymlinks(d)
		if err != nil {
			return err
		}
		var bits []string
		for i, c := range strings.TrimSpace(string(features)) {
			if c == '1' {
				bits = append(bits, fmt.Sprint(i))
			}
		}
		ok("device %s %s at %s, features %s", filepath.Base(d), filepath.Base(driver), filepath.Base(filepath.Dir(where)), strings.Join(bits, ","))
	}
	return nil
}

// Disks: vda is written to and read, vdb is read-only, vdc has an overlay.
const half = 2 << 20 // bytes: the second half of vda is written

func disks() error {
	for _, n := range []string{"vda", "vdb", "vdc"} {
		b, err := os.ReadFile("/dev/" + n)
		if err != nil {
			return err
		}
		id, err := os.ReadFile("/sys/block/" + n + "/serial")
		if err != nil {
			return err
		}
		ok("%s %s %d bytes, sha256 %x", n, bytes.TrimSpace(id), len(b), sha256.Sum256(b))
	}
	// An open for writing is no error before Linux 6.5.
	f, err := os.OpenFile("/dev/vdb", os.O_RDWR, 0)
	if err == nil {
		_, err = f.Write(make([]byte, 512))
		f.Close()
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("a write to the read-only disk: %v", err)
	}
	for _, n := range []string{"vda", "vdc"} {
		if err := writeDisk("/dev/" + n); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// writeDisk copies the first half, inverted, to the second, past the page cache and
// with a flush; then it gives back and zeroes 1 MiB each of the first.
func writeDisk(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	want := sha256.New()
	for at := int64(0); at < half; at += int64(len(buf)) {
		if _, err := f.ReadAt(buf, at); err != nil {
			return err
		}
		for i := range buf {
			buf[i] ^= 0xFF
		}
		want.Write(buf)
		if _, err := f.WriteAt(buf, half+at); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	for _, c := range []struct {
		what string
		req  uintptr
		at   uint64
	}{{"discard", unix.BLKDISCARD, 0}, {"write zeroes", unix.BLKZEROOUT, 1 << 20}} {
		if err := blockRange(f, c.req, c.at, 1<<20); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
	}
	if _, err := f.ReadAt(buf, 1<<20); err != nil || !bytes.Equal(buf, make([]byte, len(buf))) {
		return fmt.Errorf("zeroes were written and are not read, %v", err)
	}
	got := sha256.New()
	for at := int64(0); at < half; at += int64(len(buf)) {
		if _, err := f.ReadAt(buf, half+at); err != nil {
			return err
		}
		got.Write(buf)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return errors.New("what was written is not read")
	}
	return f.Sync()
}

// Addresses and ports that the host knows as well.
const (
	guestIP   = "10.0.2.15"
	gateway   = "10.0.2.2"
	echoPort  = 7
	donePort  = 99
	totalEcho = 1 << 20
)

func network() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, c := range []struct {
		what string
		req  uint
		ip   string
	}{{"address", unix.SIOCSIFADDR, guestIP}, {"mask", unix.SIOCSIFNETMASK, "255.255.255.0"}} {
		ifr, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		if err := ifr.SetInet4Addr(net.ParseIP(c.ip).To4()); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, c.req, ifr); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
	}
	ifr, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	if err := channels(s); err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", guestIP, echoPort))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go echo(c, c.(*net.TCPConn).CloseWrite)
		}
	}()
	// Several flows at once, so that each pair of queues has some.
	result := make(chan error)
	begin := time.Now()
	const flows = 4
	for range flows {
		go func() {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", gateway, echoPort), 20*time.Second)
			if err == nil {
				err = exchange(c, c.(*net.TCPConn).CloseWrite)
				c.Close()
			}
			result <- err
		}()
	}
	for range flows {
		err = errors.Join(err, <-result)
	}
	if err == nil {
		ok("TCP to the host: %d times %d bytes there and back, %v", flows, totalEcho, time.Since(begin).Round(time.Millisecond))
	}
	return err
}

// channels asks the driver for two pairs of queues.
func channels(s int) error {
	if err := setChannels(s, "eth0", 2); err != nil {
		return fmt.Errorf("two pairs of queues: %w", err)
	}
	queues, err := filepath.Glob("/sys/class/net/eth0/queues/*")
	if err != nil || len(queues) != 4 {
		return fmt.Errorf("queues %v, %v: want two pairs", queues, err)
	}
	ok("two pairs of queues")
	return nil
}

// exchange sends bytes and wants them back, up to the end of both directions.
func exchange(c io.ReadWriter, closeWrite func() error) error {
	data := make([]byte, totalEcho)
	x := uint64(time.Now().UnixNano()) | 1
	for i := range data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data[i] = byte(x)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, closeWrite())
	}()
	back, err := io.ReadAll(c)
	if err = errors.Join(<-sent, err); err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%d bytes came back of %d, or others", len(back), len(data))
	}
	return nil
}

func echo(c io.ReadWriteCloser, closeWrite func() error) {
	defer c.Close()
	if _, err := io.Copy(c, c); err != nil {
		fmt.Println("guest: FAILED: echo:", err)
		return
	}
	if err := closeWrite(); err != nil {
		fmt.Println("guest: FAILED: end of echo:", err)
	}
}

// stream is an AF_VSOCK connection.
type stream struct{ *os.File }

func newStream(fd int) (stream, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return stream{}, err
	}
	return stream{os.NewFile(uintptr(fd), "vsock")}, nil
}

func (s stream) closeWrite() (err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }); e != nil {
		return e
	}
	return err
}

func dial(port uint32) (stream, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return stream{}, err
	}
	for err = syscall.EINTR; err == syscall.EINTR; {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port})
	}
	if err != nil {
		unix.Close(fd)
		return stream{}, err
	}
	return newStream(fd)
}

func vsock() error {
	dev, err := os.Open("/dev/vsock")
	if err != nil {
		return err
	}
	cid, err := unix.IoctlGetInt(int(dev.Fd()), unix.IOCTL_VM_SOCKETS_GET_LOCAL_CID)
	if err != nil {
		return err
	}
	ok("CID %d", cid)
	begin := time.Now()
	c, err := dial(1024)
	if err != nil {
		return fmt.Errorf("port 1024: %w", err)
	}
	if err := exchange(c, c.closeWrite); err != nil {
		return err
	}
	c.Close()
	ok("vsock to the host: %d bytes there and back, %v", totalEcho, time.Since(begin).Round(time.Millisecond))
	if _, err := dial(9999); !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("a port that nobody has: %v", err)
	}
	if err := serveVsock(streams.EchoPort, func(c net.Conn) { echo(c, c.(interface{ CloseWrite() error }).CloseWrite) }); err != nil {
		return err
	}
	end, err := agentd.ListenVsock(donePort)
	if err != nil {
		return err
	}
	ok("ready")
	// The host is done when it calls here.
	last, err := end.Accept()
	if err != nil {
		return err
	}
	return last.Close()
}
