package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// helpHead and helpTail are the help around the table of commands.
const helpHead = `smolvmm boots a NetBSD kernel in a virtual machine of its own, in milliseconds.

Usage: smolvmm -kernel FILE [-disk FILE]… [flags] [-- COMMAND [ARG]…]
       smolvmm COMMAND [flags] …

The flags most used (smolvmm help boot has them all):
  -k FILE   kernel            -disk FILE[,ro][,overlay]   disk, repeatable
  -m SIZE   RAM: 256, 1G      -p 8080:80   a port of the guest's on this host
  -c N      CPUs              -e K=V, --secret NAME   for the guest's command
  -v        say what is done  --timeout 30s   end it after that long

Commands (smolvmm help COMMAND tells more of each):
`

const helpTail = `
In the console: Ctrl-a x quits, Ctrl-a h helps. See also: smolvmm help commands

  smolvmm demo                              see a machine boot, nothing needed
  smolvmm kernel fetch                      get NetBSD's own MICROVM kernel
  smolvmm -kernel netbsd -disk root.img     boot it
`

// HelpText is `smolvmm --help`: what fits a screen.
func HelpText() string {
	var b strings.Builder
	b.WriteString(helpHead)
	for _, group := range Groups() {
		line := fmt.Sprintf("  %-10s", group)
		for _, c := range Verbs() {
			if c.Group != group {
				continue
			}
			if utf8.RuneCountInString(line)+1+len(c.Name) > 79 {
				fmt.Fprintln(&b, line)
				line = strings.Repeat(" ", 12)
			}
			line += " " + c.Name
		}
		if strings.TrimSpace(line) != group {
			fmt.Fprintln(&b, line)
		}
	}
	b.WriteString(helpTail)
	return b.String()
}

// CommandsHelp is `smolvmm help commands`.
func CommandsHelp() string {
	var b strings.Builder
	for _, group := range Groups() {
		head := group + ":\n"
		for _, c := range Verbs() {
			if c.Group == group {
				fmt.Fprintf(&b, "%s  %-12s %s\n", head, c.Name, c.Summary)
				head = ""
			}
		}
		if head == "" {
			fmt.Fprintln(&b)
		}
	}
	b.WriteString("Topics:\n  boot         smolvmm -kernel FILE and all its flags\n\nsmolvmm help COMMAND tells more of each.\n")
	return b.String()
}

func isHelp(a string) bool { return a == "-h" || a == "-help" || a == "--help" }

// help is `smolvmm help [COMMAND]`.
func (p Program) help(args []string, s Streams) error {
	if len(args) == 0 {
		fmt.Fprint(s.Out, HelpText())
		return nil
	}
	names := []string{"boot", "commands"}
	if len(args) == 1 {
		if c, ok := p.command(args[0]); ok {
			fmt.Fprint(s.Out, c.Help)
			return nil
		}
	}
	for _, c := range Verbs() {
		if len(args) == 1 && c.Name == args[0] {
			return handOver("help "+c.Name, []string{"help", c.Name})
		}
		names = append(names, c.Name)
	}
	switch word := strings.Join(args, " "); word {
	case "boot":
		fmt.Fprint(s.Out, bootHelp)
		return nil
	case "commands":
		fmt.Fprint(s.Out, CommandsHelp())
		return nil
	default:
		return Usagef("help: %q is no command%s: smolvmm help commands lists them", word, DidYouMean(word, names, ""))
	}
}

// bootHelp is `smolvmm help boot`: every flag of a boot.
const bootHelp = `smolvmm -kernel FILE boots a kernel: every flag of a boot.

Usage: smolvmm -kernel FILE [-disk FILE]… [flags] [-- COMMAND [ARG]…]

  -k, --kernel FILE       PVH kernel, ELF or gzip (default: newest fetched one)
      --disk FILE[,ro][,overlay[=FILE]][,serial=ID]   disk; repeat for ld1 …
  -m, --memory SIZE       RAM: 256, 256M, 1G (default 256M, at most 64G)
  -c, --cpus N            CPUs, 1 to 32 (default 1)
  -a, --append TEXT       kernel arguments (root=ld0a console=com if not given)
      --initrd FILE       PVH module; repeatable
      --console WHERE     stdio, none, pty, file:PATH[,append] or unix:PATH
      --net none|user[,subnet=CIDR][,mac=…][,mtu=…]   interface (default user)
  -p, --publish 8080:80[/udp]|unix:PATH:22   a port of the guest's on this host
      --egress RULE, --egress-file FILE   where it may go: deny-all, allow NAME
      --host-service PORT, --host-link    its ways to this host, and back
      --name NAME, --mac ADDR, --mtu N, --rate SIZE[,pps=N][,burst=TIME]
      --dns NAME=ADDR, --search DOMAIN    names for it, and its domain
      --pcap FILE, --audit FILE           its frames, and what was denied
      --cpu TEMPLATE      host, baseline; take features away: host,-smap,-xsave
  -e, --env K[=V]         variable for the guest's command; repeatable
  -E, --file NAME=FILE    file for the guest's command; repeatable
      --secret NAME[=@FILE]   secret, from the environment or a file
      --fw_cfg name=opt/…,string=…|file=…   raw item, as in QEMU
      --vsock CID,PATH    virtio sockets, by a Unix socket on this host
      --api-sock PATH, --id ID   HTTP; without -kernel, wait for what it says
      --metrics-addr ADDR:PORT   metrics for Prometheus, on the loopback
      --log-format text|json, --no-seccomp   the latter is not followed
      --timeout 30s       end the machine after that long
      --hugepages[=none]  RAM from reserved 2 MiB pages; none: all of 4 KiB
      --acpi              tell of devices by ACPI tables, for a Linux kernel
      --confine MODE      seccomp, Landlock: enforce (default), log, trap, off
      --trace             a line on standard error for every exit of the guest
  -v, --verbose           say what the monitor does
  -h, --help | --version  this help | the version
Long names take one dash or two. In the console: Ctrl-a x quits, Ctrl-a h helps.

Examples:
  smolvmm demo                              see a machine boot, nothing needed
  smolvmm kernel fetch                      get NetBSD's own MICROVM kernel
  smolvmm -kernel netbsd -disk root.img     boot it
  smolvmm -k netbsd -disk root.img,overlay -m 1G -c 2 -- /bin/sh -c 'exit 3'
Exit status: the guest's own through its exit port; 2 bad input, 120 reboot,
121 triple fault, 122 KVM error, 123 Ctrl-a x, 124 timeout, 125 host failure,
128+N signal N.
`
