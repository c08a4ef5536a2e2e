package demo

// Mode is something the guest does when asked on its command line.
type Mode struct {
	Name    string // what follows demo=
	Value   string // what may follow =, and the options behind commas; empty if none
	Summary string // one line
}

var modes = [...]Mode{
	{"check", "", "examine the whole machine and drive every device (the default)"},
	{"hello", "", "print a line"},
	{"floor", "", "end at once, before any device is touched"},
	{"smp", "[,ms=5]", "start every CPU and let each count"},
	{"print", "N", "print N bytes as fast as the UART takes them"},
	{"echo", "", `echo what is typed until the line "quit"`},
	{"count", "[N][,every=256]", "count, writing and verifying the disk's end; N rounds or for ever"},
	{"touch", "N[,wait]", "write to every page of N MiB of RAM"},
	{"blkbench", "qd,bs,rw,count", "load a disk: rw is r or w, rr or rw at random places (writes destroy)"},
	{"irqstorm", "N[,qd=4][,seed=1]", "N reads completed by interrupt alone, with late EOIs"},
	{"netecho", "", `answer ARP, ping and UDP port 7 until a datagram "quit"`},
	{"nettcp", "up|down|rr|conn|serve[,host=10.0.2.2][,port=5001][,bytes=100M][,count=10000]", "measure TCP, or serve it"},
	{"vsock", "up|down|rr|serve[,port=52][,bytes=100M][,count=1000][,conns=16]", "streams over virtio-vsock: to the host, from it, or serve them"},
	{"hostile", "CASE|all[,seed=1][,pokes=2000]", "break the rules of VirtIO and see that the device says so"},
	{"exit", "N", "end with status N"},
	{"reboot", "kbd|cf9|p92", "reset by keyboard controller, port 0xCF9 or port 0x92"},
	{"triple", "", "take a triple fault"},
	{"fault", "", "take a page fault: reported, status 97"},
	{"hlt", "", "halt for ever with interrupts off"},
	{"spin", "", "loop for ever"},
	{"badop", "", "execute where no memory is: KVM cannot emulate it"},
	{"mmioabsent", "", "touch addresses and ports where nothing is: they read as ones"},
}

// Modes lists what the guest can do.
func Modes() []Mode { return append([]Mode(nil), modes[:]...) }
