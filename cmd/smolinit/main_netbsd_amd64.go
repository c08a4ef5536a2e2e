// Command smolinit is the first process of a NetBSD guest under smolvmm: it
// makes the system fit for one command, runs it, and ends the machine with the
// command's exit status. See docs/smolinit.md.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The privilege for port I/O belongs to a thread: main stays on the first one.
func init() { runtime.LockOSThread() }

const configFile = "/etc/smolinit.json"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "smolinit runs as process 1 only: put it at /sbin/init")
		os.Exit(2)
	}
	s := &system{}
	if err := s.ports(func(p ports) { p.out8(portMark, markInit) }); err != nil {
		s.notef("%v: no configuration channel and no exit port", err)
	}
	s.end(s.run())
}

// system is the guest in the hands of its first process.
type system struct {
	cfg      Config
	notes    []string // what could not be said before there was a console
	talking  bool
	rootType string   // of the root file system
	rootRW   bool     // root was made writable here
	mounted  []string // mount points with a disk behind them, in order
	children children // of others than the supervisor
}

// notef says something on the console, or keeps it until there is one.
func (s *system) notef(format string, args ...any) {
	line := "smolinit: " + fmt.Sprintf(format, args...)
	if !s.talking {
		s.notes = append(s.notes, line)
		return
	}
	fmt.Fprintln(os.Stderr, line)
}

// ports runs f with access to the ports on this thread. The privilege is given
// back at once, so that no child has it.
func (s *system) ports(f func(ports)) error {
	if err := iopl(3); err != nil {
		return err
	}
	f(machinePorts{})
	return iopl(0)
}

// run does everything up to the command's end and gives its status.
func (s *system) run() (status int) {
	defer func() {
		if r := recover(); r != nil {
			s.talking = true
			s.notef("internal error: %v", r)
			status = statusInit
		}
	}()
	it, bad := s.configure()
	s.root()
	devices := s.devices
	if s.cfg.Build != nil && s.rootType == "ffs" {
		devices = addNodes
	}
	if err := devices(); err != nil {
		s.notef("device nodes: %v", err)
	}
	s.console()
	if bad != nil {
		s.notef("configuration: %v", bad)
		return statusInit
	}
	if s.cfg.Build != nil {
		return s.step(it)
	}
	s.mounts(len(it.files)+len(it.secrets) > 0)
	s.identity()
	if err := s.stage(it); err != nil {
		s.notef("%v", err)
		return statusInit
	}
	if err := s.serveAgent(it.agent); err != nil {
		s.notef("agent: %v", err)
	}
	return s.command()
}

// identity gives the machine its name and its networks.
func (s *system) identity() {
	if s.cfg.Hostname != "" {
		if err := setHostname(s.cfg.Hostname); err != nil {
			s.notef("%v", err)
		}
	}
	// A kernel without INET has no lo0, and needs none.
	if err := s.loopback(); err != nil && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EAFNOSUPPORT) {
		s.notef("lo0: %v", err)
	}
	s.network()
}

// stage writes the host's files and secrets.
func (s *system) stage(it *items) error {
	st := &stager{uid: s.cfg.UID, gid: s.cfg.GID, memory: inMemory, chown: (*os.File).Chown}
	return st.stage(&s.cfg, it)
}

// configure reads the image's file and the host's items.
func (s *system) configure() (*items, error) {
	it := &items{}
	var bad error
	if err := s.ports(func(p ports) { it, bad = readItems(p) }); err != nil || errors.Is(bad, errNoChannel) {
		it, bad = &items{}, nil
	}
	if bad != nil {
		return nil, bad
	}
	for _, n := range it.notes {
		s.notef("%s", n)
	}
	switch doc, err := readBounded(configFile, maxConfig); {
	case err == nil:
		if err := s.cfg.merge(doc, configFile); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if it.config != nil {
		if err := s.cfg.merge(it.config, configPrefix+"init.json"); err != nil {
			return nil, err
		}
	}
	for k, v := range it.env {
		if s.cfg.Env == nil {
			s.cfg.Env = map[string]string{}
		}
		s.cfg.Env[k] = v
	}
	return it, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes; at most %d are read", path, st.Size(), limit)
	}
	return os.ReadFile(path)
}

// root makes the root file system writable: the kernel mounts it read-only.
func (s *system) root() {
	kind, flags, err := fileSystem("/")
	if err != nil {
		s.notef("%v", err)
		return
	}
	s.rootType = kind
	if flags&mntReadOnly == 0 || s.cfg.RootRO || !fileSystems[kind] {
		return
	}
	// A disk attached read-only stays so (EROFS, EACCES); that is its
	// owner's wish.
	err = mount(Mount{Type: kind, Target: "/"}, mntUpdate)
	s.rootRW = err == nil
	if err != nil && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
		s.notef("the root file system stays read-only: %v", err)
	}
}

// devices puts a tmpfs with every node on /dev where the image's own /dev lacks
// one that most programs need. Nodes are never made in the image: NetBSD's
// ext2fs forgets their device numbers, so that each would be the console.
func (s *system) devices() error {
	if !slices.ContainsFunc(nodes, func(n node) bool { return n.needed && !there(n) }) {
		return nil
	}
	if err := os.Mkdir("/dev", 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := mount(Mount{Type: "tmpfs", Target: "/dev", Mode: 0o755}, 0); err != nil {
		return err
	}
	if err := os.Mkdir("/dev/pts", 0o755); err != nil {
		return err
	}
	return makeNodes(func(node) bool { return true })
}

// addNodes makes the nodes that /dev lacks in the image itself.
func addNodes() error {
	if err := os.Mkdir("/dev", 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return makeNodes(func(n node) bool {
		_, err := os.Lstat("/dev/" + n.name)
		return err != nil
	})
}

// there tells whether a node exists and is what it should be.
func there(n node) bool {
	var st unix.Stat_t
	return unix.Lstat("/dev/"+n.name, &st) == nil && st.Mode&unix.S_IFMT == n.kind() && st.Rdev == n.dev()
}

// makeNodes makes the nodes that are wanted.
func makeNodes(wanted func(node) bool) error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, n := range nodes {
		if !wanted(n) {
			continue
		}
		if err := unix.Mknod("/dev/"+n.name, n.kind()|uint32(n.perm), int(n.dev())); err != nil {
			return &fs.PathError{Op: "mknod", Path: "/dev/" + n.name, Err: err}
		}
	}
	return nil
}

// console puts /dev/console on descriptors 0 to 2, where the Go runtime has
// found nothing and put /dev/null.
func (s *system) console() {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		for std := range 3 {
			_ = unix.Dup2(fd, std)
		}
		if fd > 2 {
			unix.Close(fd)
		}
	}
	s.talking = true
	for _, line := range s.notes {
		fmt.Fprintln(os.Stderr, line)
	}
	if err != nil {
		s.notef("/dev/console: %v", err)
	}
}

// mounts makes smolinit's own mounts and those asked for.
func (s *system) mounts(needRun bool) {
	own := ownMounts
	if needRun {
		own = append([]Mount{{Type: "tmpfs", Target: runDir, Mode: 0o755}}, own...)
		if err := os.Mkdir(runDir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			s.notef("files and secrets need a directory %s in the image: %v", runDir, err)
		}
	}
	s.mountAll(own)
}

// mountAll makes mounts of smolinit's own, each where its directory is, and then
// those asked for.
func (s *system) mountAll(own []Mount) {
	for _, m := range own {
		asked := slices.ContainsFunc(s.cfg.Mounts, func(o Mount) bool { return filepath.Clean(o.Target) == m.Target })
		if st, err := os.Stat(m.Target); asked || err != nil || !st.IsDir() {
			continue
		}
		// ENODEV: the kernel was built without it.
		if err := mount(m, 0); err != nil && !errors.Is(err, unix.ENODEV) {
			s.notef("%v", err)
		}
	}
	for _, m := range s.cfg.Mounts {
		if err := os.MkdirAll(m.Target, 0o755); err != nil {
			s.notef("%v", err)
		}
		if err := mount(m, 0); err != nil {
			s.notef("%v", err)
		} else if fileSystems[m.Type] {
			s.mounted = append(s.mounted, m.Target)
		}
	}
}

// inMemory tells whether a directory is on a tmpfs.
func inMemory(dir string) (bool, string, error) {
	kind, _, err := fileSystem(dir)
	if err != nil {
		return false, "", err
	}
	return kind == "tmpfs" || kind == "mfs", kind, nil
}

// command runs the command to its end.
func (s *system) command() int {
	argv := s.cfg.Argv
	if len(argv) == 0 {
		if _, err := os.Stat("/bin/sh"); err != nil {
			s.banner()
			return 0
		}
		s.notef("no command is given: starting /bin/sh")
		argv = []string{"/bin/sh"}
	}
	status, err := s.supervise(argv, []uintptr{0, 1, 2})
	if err != nil {
		s.notef("%v", err)
	}
	return status
}

// supervise runs a command to its end, with std as its descriptors 0 to 2, and
// ends every other process after it. The error says why it did not start.
func (s *system) supervise(argv []string, std []uintptr) (status int, err error) {
	env := s.cfg.environ()
	file, err := lookPath(argv[0], env)
	if err != nil {
		return startStatus(err), err
	}
	cwd := s.cfg.Cwd
	if cwd == "" {
		cwd = "/"
	}
	attr := &syscall.ProcAttr{Dir: cwd, Env: env, Files: std, Sys: &syscall.SysProcAttr{Setsid: true}}
	if _, err := unix.IoctlGetTermios(int(std[0]), unix.TIOCGETA); err == nil {
		attr.Sys.Setctty = true // the interrupt character reaches the command
	}
	if s.cfg.UID != 0 || s.cfg.GID != 0 || len(s.cfg.Groups) > 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: s.cfg.UID, Gid: s.cfg.GID, Groups: s.cfg.Groups}
	}
	stop := make(chan os.Signal, 4)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	signal.Ignore(syscall.SIGPIPE, syscall.SIGTSTP)
	if !s.cfg.Quiet {
		s.notef("running %s", file)
	}
	pid, _, err := syscall.StartProcess(file, argv, attr)
	if err != nil {
		return startStatus(err), fmt.Errorf("%s: %w", file, err)
	}
	sv := &supervisor{
		kill: syscall.Kill, ended: reap(), others: s.children.ended, stop: stop, warnf: s.notef,
		grace: time.Duration(s.cfg.grace()) * time.Second, settle: 2 * time.Second,
	}
	status = sv.watch(pid)
	sv.sweep()
	return status, nil
}

// banner tells what there is, where nothing can be run.
func (s *system) banner() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	ncpu, _ := unix.SysctlUint32("hw.ncpu")
	mem, _ := unix.SysctlUint64("hw.physmem64")
	s.notef("level %d, %s %s %s, %d CPU, %d MiB, root on %s", level, unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]),
		unix.ByteSliceToString(u.Machine[:]), ncpu, mem>>20, s.rootType)
	s.notef("no command is given (%sinit.json or %s), and the image has no /bin/sh", configPrefix, configFile)
	for _, dir := range []string{"/", "/bin", "/sbin", "/usr/bin", "/usr/local/bin"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		var names []string
		for _, e := range entries[:min(len(entries), 40)] {
			names = append(names, e.Name())
		}
		if len(entries) > len(names) {
			names = append(names, "…")
		}
		s.notef("%-6s %s", dir, strings.Join(names, " "))
	}
}

// end closes the file systems and the machine. It does not return.
func (s *system) end(status int) {
	if s.cfg.Build == nil {
		s.closeFiles()
	}
	how := rbAutoboot
	switch s.cfg.Poweroff {
	case "reboot":
	case "halt":
		how = rbHalt
	default:
		// What the command has printed is still on its way out.
		if err := drain(1); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.ENODEV) {
			s.notef("draining the console: %v", err)
		}
		// Ends here under smolvmm.
		if err := s.ports(func(p ports) { p.out8(portExit, uint8(status)) }); err == nil {
			s.notef("the command ended with status %d, and no exit port took it: rebooting", status)
		}
	}
	s.notef("reboot: %v", reboot(how))
	os.Exit(status) // the kernel panics with the status
}

// closeFiles closes the file systems.
func (s *system) closeFiles() {
	unix.Sync()
	for _, dir := range slices.Backward(s.mounted) {
		if err := unix.Unmount(dir, 0); err != nil {
			if err := unix.Unmount(dir, mntForce); err != nil {
				s.notef("unmount %s: %v", dir, err)
			}
		}
	}
	if s.rootRW {
		s.closeRoot()
	}
}

// closeRoot has everything written out. Going back to read-only does that and
// marks the file system clean; NetBSD's ext2fs cannot go back (EOPNOTSUPP).
func (s *system) closeRoot() {
	err := mount(Mount{Type: s.rootType, Target: "/"}, mntUpdate|mntReadOnly|mntForce)
	if err == nil {
		return
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		s.notef("closing the root file system: %v", err)
	}
	// sync(2) has only begun the writes, and nothing tells of their end but
	// the disks' own count.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		busy, err := busyTransfers()
		if err == nil && busy == 0 {
			return
		}
		if err != nil || time.Now().After(deadline) {
			s.notef("the disk may lack the last writes: %d transfers left, %v", busy, err)
			return
		}
	}
}
