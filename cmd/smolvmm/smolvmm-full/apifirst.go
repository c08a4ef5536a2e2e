package main

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/vmm"
)

// serveFirst is `smolvmm --api-sock PATH` without a kernel: it waits until it is
// told over the socket what to boot, as Firecracker does.
func serveFirst(b *cli.BootFlags, argv []string, s cli.Streams, changed func(string) bool) error {
	log, err := api.NewLog(s.Err, b.API.LogFormat, cli.LevelOf(b.Verbose), false)
	if err != nil {
		return cli.Usagef("-log-format %w", err)
	}
	b.Log = log.Logger()
	var spec api.Spec
	if changed("memory") {
		size, err := cli.ParseSize(b.Memory)
		if err != nil {
			return err
		}
		mib := size >> 20
		spec.Machine.MemoryMiB = &mib
	}
	if changed("cpus") {
		spec.Machine.CPUs = &b.CPUs
	}
	spec.Options.ACPI = b.ACPI
	if b.Pages == vmm.PagesReserved {
		pages := "2M"
		spec.Machine.HugePages = &pages
	}
	// What can be told of the flags now is not told at the start only.
	if err := cli.CheckConsole(b.Console); err != nil {
		return err
	}
	if _, err := cli.Confinement(b.Confine, b.Console); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	a, err := openAPI(apiOptions{b.API.Socket, b.API.Metrics, api.Config{
		ID: b.API.ID, Spec: spec, Log: log, Logger: b.Log, ConsolePath: consolePath(b.Console),
	}})
	if err != nil {
		return err
	}
	a.tell(s)
	// A confined process cannot remove its socket.
	k, err := cli.StartKeeper(cli.KeeperJob{Sockets: []cli.SocketFile{{Path: b.API.Socket}}}, s.In)
	if err != nil {
		b.Log.Warn("the socket will not be removed if this process is killed", "err", err)
	} else {
		a.l.SetUnlinkOnClose(false)
	}
	defer k.Release()
	defer a.finish()
	for {
		select {
		case sig := <-signals:
			return notBooted(a, cli.SignalError{Sig: sig.(syscall.Signal)})
		case why := <-a.killed:
			return notBooted(a, cli.SignalError{Sig: syscall.SIGKILL, Why: why})
		case r := <-a.starts:
			a.mu.Lock()
			a.pending = r.reply
			a.mu.Unlock()
			err := bootSpec(b, a, r.spec, argv, s)
			a.answer(err)
			if a.ran || err == nil {
				return asFirecracker(err)
			}
			b.Log.Info("not started", "err", err)
		}
	}
}

// notBooted is the end of a process that was not told what to boot.
func notBooted(a *apiServer, why cli.SignalError) error {
	exit := vmm.Exit{End: vmm.EndStopped, Detail: why.Error(), Cause: why}
	a.Ended(exit, nil)
	return cli.StatusOf(exit)
}

// asFirecracker: a guest that resets its machine ends well, as that is how a
// guest of Firecracker's shuts down.
func asFirecracker(err error) error {
	var st *cli.StatusError
	if errors.As(err, &st) && st.Status == cli.StatusReboot {
		return nil
	}
	return err
}

// bootSpec boots what the API's user has described, with the flags for what the
// API has no words for.
func bootSpec(b *cli.BootFlags, a *apiServer, spec api.Spec, argv []string, s cli.Streams) error {
	c := *b // a boot that fails may be followed by another
	m := spec.Machine.Whole()
	c.Kernel, c.CPUs, c.Memory = spec.Boot.Kernel, *m.CPUs, strconv.FormatUint(*m.MemoryMiB, 10)+"M"
	c.ACPI = spec.Options.ACPI
	switch {
	case *m.HugePages == "2M":
		c.Pages = vmm.PagesReserved
	case c.Pages == vmm.PagesReserved: // the API's user has taken the flag back
		c.Pages = vmm.PagesTransparent
	}
	if spec.Boot.BootArgs != "" {
		c.Append = spec.Boot.BootArgs
	}
	if spec.Boot.Initrd != "" {
		c.Initrds = append([]string{spec.Boot.Initrd}, b.Initrds...)
	}
	c.Disks = nil
	for _, d := range spec.Drives {
		c.Disks = append(c.Disks, diskFlag(d))
	}
	c.Disks = append(c.Disks, b.Disks...)
	c.Net.Nets = append([]string(nil), b.Net.Nets...)
	own := len(c.Net.Nets)
	for _, n := range spec.Nets {
		c.Net.Nets = append(c.Net.Nets, netFlag(n))
		b.Log.Info("an interface leads to the user network, not to the host's device", "interface", n.ID, "device", n.HostDevice)
	}
	if len(c.Net.Nets) == 0 {
		c.Net.Nets = []string{"none"}
	}
	cfg, err := c.Config(argv, s)
	if err != nil {
		return err
	}
	for i, n := range spec.Nets {
		rx, _ := n.RX.Limit()
		tx, _ := n.TX.Limit() // checked when they were put
		c.Plan.Interfaces[own+i].Limits = &vmm.NetLimits{RX: rx, TX: tx}
	}
	if spec.Vsock != nil {
		cfg.Vsock = &vmm.Vsock{CID: spec.Vsock.CID, Path: spec.Vsock.Path}
	}
	if a.agent, err = giveAgent(&cfg); err != nil {
		cli.Wipe(cfg.Items)
		return err
	}
	o := c.Options()
	o.Attached = append(o.Attached, a)
	return cli.RunMachine(cfg, o, s)
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
