package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// apiFlags are those of the API, as typed.
type apiFlags struct {
	socket, id, metrics, logFormat string
	noSeccomp                      bool
}

func (a *apiFlags) set(f *pflag.FlagSet) {
	f.StringVar(&a.socket, "api-sock", "", "serve HTTP on a Unix socket at `PATH`; without -kernel, wait for what it says to boot")
	f.StringVar(&a.id, "id", "", "`ID` that the API tells of the machine")
	f.BoolVar(&a.noSeccomp, "no-seccomp", false, "taken for Firecracker's sake, and not followed: see -confine")
	a.common(f)
}

// common are the flags of every machine that serves HTTP.
func (a *apiFlags) common(f *pflag.FlagSet) {
	f.StringVar(&a.metrics, "metrics-addr", "", "serve metrics for Prometheus at a loopback `ADDRESS:PORT` too")
	f.StringVar(&a.logFormat, "log-format", api.Text, "`FORMAT` of what the monitor says: text or json")
}

// check refuses flags that are wrong, before anything is opened.
func (a *apiFlags) check() error {
	if a.id != "" {
		if err := api.CheckID(a.id); err != nil {
			return usagef("-id %.70q: %w", a.id, err)
		}
	}
	if a.logFormat != api.Text && a.logFormat != api.JSON && a.logFormat != "" {
		return usagef("-log-format %q: must be text or json", a.logFormat)
	}
	if a.metrics != "" {
		if err := api.Loopback(a.metrics); err != nil {
			return usagef("-metrics-addr %q: %w", a.metrics, err)
		}
	}
	return nil
}

// apiServer joins the API to the machine of this process. A nil one does nothing.
type apiServer struct {
	server *api.Server
	l      *net.UnixListener // nil: metrics alone
	tcp    net.Listener
	path   string
	stays  bool              // the socket is removed with the folder that it is in
	starts chan startRequest // of a process that waits for InstanceStart
	killed chan string       // the same, before there is a machine
	over   chan struct{}     // closed by release at the end of it all
	agent  *guestAgent       // nil: the guest has been given no key

	mu      sync.Mutex // guards what follows
	m       *vmm.Machine
	nw      *network.Network
	cancel  context.CancelCauseFunc
	kill    string // why, if it came before cancel
	pending chan error
	ran     bool
}

// startRequest is an InstanceStart that waits for its answer.
type startRequest struct {
	spec  api.Spec
	reply chan error
}

// apiOptions are what an API is opened with.
type apiOptions struct {
	socket, metrics string // "": not served
	config          api.Config
}

// openAPI listens, and answers from now on.
func openAPI(o apiOptions) (a *apiServer, err error) {
	a = &apiServer{path: o.socket, starts: make(chan startRequest), killed: make(chan string, 1), over: make(chan struct{})}
	opened := a
	defer func() {
		if err != nil {
			opened.unlisten()
		}
	}()
	if o.socket != "" {
		if a.l, err = listenUnix(o.socket); err != nil {
			return nil, usagef("-api-sock %s: %w", o.socket, err)
		}
	}
	if o.metrics != "" {
		// Without keep-alive, of which no connection within a host has need.
		lc := net.ListenConfig{KeepAlive: -1}
		if a.tcp, err = lc.Listen(context.Background(), "tcp", o.metrics); err != nil {
			return nil, usagef("-metrics-addr %s: %w", o.metrics, err)
		}
	}
	o.config.Host = a
	if o.config.Version == "" {
		o.config.Version = versionOf(debug.ReadBuildInfo())
	}
	if a.server, err = api.New(o.config); err != nil {
		return nil, err
	}
	if a.l != nil {
		a.server.Serve(a.l)
	}
	if a.tcp != nil {
		a.server.ServeMetrics(a.tcp)
	}
	return a, nil
}

func (a *apiServer) unlisten() {
	if a.l != nil {
		a.l.Close()
	}
	if a.tcp != nil {
		a.tcp.Close()
	}
}

// attach tells the jail and the keeper of the sockets, and where a kill goes.
func (a *apiServer) attach(cfg *vmm.Config, con *console, cancel context.CancelCauseFunc) {
	if a == nil {
		return
	}
	cfg.Confine.API, cfg.Confine.APITCP = a.l != nil, a.tcp != nil
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancel = cancel
	if a.kill != "" {
		cancel(signalError{syscall.SIGKILL, a.kill})
	}
	if a.l != nil && a.stays {
		a.l.SetUnlinkOnClose(false)
	} else if a.l != nil && !a.waits() {
		con.job.Sockets = append(con.job.Sockets, socketFile{Path: a.path})
		before := con.kept
		con.kept = func() {
			a.l.SetUnlinkOnClose(false)
			if before != nil {
				before()
			}
		}
	}
}

// waits: the process was started to be told over the socket what to boot, and its
// socket has a keeper of its own. The caller holds mu.
func (a *apiServer) waits() bool { return a.pending != nil }

// running says that the guest is about to run.
func (a *apiServer) running(m *vmm.Machine, nw *network.Network) {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.m, a.nw, a.ran = m, nw, true
	a.mu.Unlock()
	if a.agent != nil {
		a.agent.dial = nw.DialGuest
		a.server.SetAgent(a.agent)
	}
	go func() {
		select {
		case <-m.Started():
			a.server.Started()
			a.answer(nil)
		case <-a.over:
		}
	}()
}

// answer answers who waits for the start, once.
func (a *apiServer) answer(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending != nil {
		select {
		case a.pending <- err:
		default: // answered before
		}
	}
}

// ended says how the guest ended, and ends the server: nobody asks about what is
// being given back.
func (a *apiServer) ended(exit vmm.Exit, err error) {
	if a == nil {
		return
	}
	e := client.Exit{How: endOf(exit, err), Kind: "failed"}
	if err == nil {
		e.Kind = exit.End.String()
		var st *statusError
		if errors.As(statusOf(exit), &st) {
			e.Status = st.status
		}
	}
	// A guest may be over before the goroutine of running has said that it began.
	if a.hasRun() {
		a.server.Started()
		a.answer(nil)
	} else {
		a.answer(errors.New(e.How))
	}
	a.server.Ended(e)
	_ = a.server.Close()
}

// hasRun says whether the guest was entered.
func (a *apiServer) hasRun() bool {
	m, _ := a.machine()
	if m == nil {
		return false
	}
	select {
	case <-m.Started():
		return true
	default:
		return false
	}
}

// release ends what is left of the API of a process that boots by itself.
func (a *apiServer) release(err error) {
	if a == nil {
		return
	}
	a.mu.Lock()
	waits := a.waits()
	a.mu.Unlock()
	if waits {
		a.answer(err)
		return
	}
	a.finish()
}

func (a *apiServer) finish() {
	close(a.over)
	_ = a.server.Close()
	a.unlisten()
}

// The machine as the API knows it.

func (a *apiServer) Start(s api.Spec) error {
	r := startRequest{s, make(chan error, 1)}
	select {
	case a.starts <- r:
	case <-a.over:
		return errors.New("the process is ending")
	}
	select {
	case err := <-r.reply:
		return err
	case <-a.over:
		return errors.New("the process is ending")
	}
}

func (a *apiServer) machine() (*vmm.Machine, *network.Network) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m, a.nw
}

func (a *apiServer) Pause() error {
	m, _ := a.machine()
	return m.Pause()
}

func (a *apiServer) Resume() error {
	m, _ := a.machine()
	return m.Resume()
}

func (a *apiServer) Metrics() vmm.Metrics {
	m, _ := a.machine()
	return m.Metrics()
}

func (a *apiServer) Egress() []map[string]uint64 {
	_, nw := a.machine()
	return nw.Counters()
}

func (a *apiServer) Ports() (out []client.Port) {
	_, nw := a.machine()
	for _, p := range nw.Ports() {
		out = append(out, client.Port{Network: p.Network, Host: p.Host, Guest: p.Guest})
	}
	return out
}

func (a *apiServer) Kill(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kill = why
	if a.cancel != nil {
		a.cancel(signalError{syscall.SIGKILL, why})
	}
	select {
	case a.killed <- why:
	default:
	}
}

// serveBoot boots the machine that the flags describe, with the API beside it.
func (b *bootFlags) serveBoot(cfg *vmm.Config, o *runOptions, s streams) (err error) {
	g, err := giveAgent(cfg)
	if err != nil {
		return err
	}
	cpus, mib := b.cpus, cfg.Memory>>20
	spec := api.Spec{
		Boot:    api.BootSource{Kernel: b.kernel, BootArgs: b.append},
		Machine: api.MachineConfig{CPUs: &cpus, MemoryMiB: &mib},
	}
	for i, d := range cfg.Disks {
		spec.Drives = append(spec.Drives, api.Drive{ID: "ld" + strconv.Itoa(i), Path: d.Path, Root: i == 0, ReadOnly: d.ReadOnly})
	}
	for i := range b.plan.Interfaces {
		spec.Nets = append(spec.Nets, api.NetworkInterface{ID: "vioif" + strconv.Itoa(i), HostDevice: "user"})
	}
	c := api.Config{
		ID: b.api.id, Image: b.kernel, Booted: true, Spec: spec, Logger: cfg.Log, ConsolePath: consolePath(b.console),
	}
	if n := o.named; n != nil {
		c.Image, c.ConsolePath, c.Console = n.claim.Spec.Image, n.claim.ConsolePath(), n.claim.Console
	}
	o.api, err = openAPI(apiOptions{b.api.socket, b.api.metrics, c})
	if err == nil && o.named != nil {
		o.api.stays = true
	}
	if err == nil {
		o.api.agent = g
		o.api.tell(s)
	}
	return err
}

// tell says where metrics are, if that is not what the flag says.
func (a *apiServer) tell(s streams) {
	if a.tcp != nil {
		fmt.Fprintf(s.err, "smolvmm: metrics on http://%v/metrics\n", a.tcp.Addr())
	}
}

// consolePath is the file that a console goes to, if it does.
func consolePath(where string) string {
	path, ok := strings.CutPrefix(where, "file:")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(path, ",append")
}

// serveFirst is `smolvmm --api-sock PATH` without a kernel: it waits until it is
// told over the socket what to boot, as Firecracker does.
func (b *bootFlags) serveFirst(argv []string, s streams, changed func(string) bool) error {
	log, err := api.NewLog(s.err, b.api.logFormat, levelOf(b.verbose), false)
	if err != nil {
		return usagef("-log-format %w", err)
	}
	b.log = log.Logger()
	var spec api.Spec
	if changed("memory") {
		size, err := parseSize(b.memory)
		if err != nil {
			return err
		}
		mib := size >> 20
		spec.Machine.MemoryMiB = &mib
	}
	if changed("cpus") {
		spec.Machine.CPUs = &b.cpus
	}
	if b.hugepages {
		pages := "2M"
		spec.Machine.HugePages = &pages
	}
	// What can be told of the flags now is not told at the start only.
	if err := checkConsole(b.console); err != nil {
		return err
	}
	if _, err := confinement(b.confine, b.console); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	a, err := openAPI(apiOptions{b.api.socket, b.api.metrics, api.Config{
		ID: b.api.id, Spec: spec, Log: log, Logger: b.log, ConsolePath: consolePath(b.console),
	}})
	if err != nil {
		return err
	}
	a.tell(s)
	// A confined process cannot remove its socket.
	k, err := startKeeper(keeperJob{Sockets: []socketFile{{Path: b.api.socket}}}, s.in)
	if err != nil {
		b.log.Warn("the socket will not be removed if this process is killed", "err", err)
	} else {
		a.l.SetUnlinkOnClose(false)
	}
	defer k.release()
	defer a.finish()
	for {
		select {
		case sig := <-signals:
			return notBooted(a, signalError{sig: sig.(syscall.Signal)})
		case why := <-a.killed:
			return notBooted(a, signalError{syscall.SIGKILL, why})
		case r := <-a.starts:
			a.mu.Lock()
			a.pending = r.reply
			a.mu.Unlock()
			err := b.bootSpec(a, r.spec, argv, s)
			a.answer(err)
			if a.ran || err == nil {
				return asFirecracker(err)
			}
			b.log.Info("not started", "err", err)
		}
	}
}

// notBooted is the end of a process that was not told what to boot.
func notBooted(a *apiServer, why signalError) error {
	exit := vmm.Exit{End: vmm.EndStopped, Detail: why.Error(), Cause: why}
	a.ended(exit, nil)
	return statusOf(exit)
}

// asFirecracker: a guest that resets its machine ends well, as that is how a
// guest of Firecracker's shuts down.
func asFirecracker(err error) error {
	var st *statusError
	if errors.As(err, &st) && st.status == statusReboot {
		return nil
	}
	return err
}

// bootSpec boots what the API's user has described, with the flags for what the
// API has no words for.
func (b *bootFlags) bootSpec(a *apiServer, spec api.Spec, argv []string, s streams) error {
	c := *b // a boot that fails may be followed by another
	m := spec.Machine.Whole()
	c.kernel, c.cpus, c.memory = spec.Boot.Kernel, *m.CPUs, strconv.FormatUint(*m.MemoryMiB, 10)+"M"
	c.hugepages = *m.HugePages == "2M"
	if spec.Boot.BootArgs != "" {
		c.append = spec.Boot.BootArgs
	}
	if spec.Boot.Initrd != "" {
		c.initrds = append([]string{spec.Boot.Initrd}, b.initrds...)
	}
	c.disks = nil
	for _, d := range spec.Drives {
		c.disks = append(c.disks, diskFlag(d))
	}
	c.disks = append(c.disks, b.disks...)
	c.net.Nets = append([]string(nil), b.net.Nets...)
	own := len(c.net.Nets)
	for _, n := range spec.Nets {
		c.net.Nets = append(c.net.Nets, netFlag(n))
		b.log.Info("an interface leads to the user network, not to the host's device", "interface", n.ID, "device", n.HostDevice)
	}
	if len(c.net.Nets) == 0 {
		c.net.Nets = []string{"none"}
	}
	cfg, err := c.config(argv, s)
	if err != nil {
		return err
	}
	for i, n := range spec.Nets {
		rx, _ := n.RX.Limit()
		tx, _ := n.TX.Limit() // checked when they were put
		c.plan.Interfaces[own+i].Limits = &vmm.NetLimits{RX: rx, TX: tx}
	}
	if spec.Vsock != nil {
		cfg.Vsock = &vmm.Vsock{CID: spec.Vsock.CID, Path: spec.Vsock.Path}
	}
	if a.agent, err = giveAgent(&cfg); err != nil {
		wipe(cfg.Items)
		return err
	}
	o := c.options()
	o.api = a
	return runMachine(cfg, o, s)
}

// maxSerial is what a disk's identity holds, in bytes.
const maxSerial = 20

// diskFlag is a drive as -disk has it.
func diskFlag(d api.Drive) string {
	out := strings.ReplaceAll(d.Path, ",", ",,")
	if d.ReadOnly {
		out += ",ro"
	}
	if len(d.ID) <= maxSerial {
		out += ",serial=" + d.ID
	}
	return out
}

// netFlag is an interface as -net has it.
func netFlag(n api.NetworkInterface) string {
	out := "user"
	if n.MAC != "" {
		out += ",mac=" + n.MAC
	}
	if n.MTU != 0 {
		out += ",mtu=" + strconv.Itoa(n.MTU)
	}
	return out
}
