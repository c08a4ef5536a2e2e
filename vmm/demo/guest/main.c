// kmain: reads what it was given, finds the mode, runs it, ends the machine.

#include "apic.h"

int lax;

static void hello(const char *v)
{
	(void)v;
	ok("hello", "from the smolvmm test guest");
}

static void mode_smp(const char *v)
{
	const char *wrong = mp_read();

	(void)v;
	if (wrong && !lax)
		fail("mp", "%s", wrong);
	smp_count("smp");
}

static const struct mode modes[] = {
	{ "check", check_all },
	{ "hello", hello },
	{ "smp", mode_smp },
	{ "print", mode_print },
	{ "echo", mode_echo },
	{ "count", mode_count },
	{ "touch", mode_touch },
	{ "blkbench", mode_blkbench },
	{ "irqstorm", mode_irqstorm },
	{ "netecho", mode_netecho },
	{ "nettcp", mode_nettcp },
	{ "vsock", mode_vsock },
	{ "hostile", mode_hostile },
	{ "exit", mode_exit },
	{ "reboot", mode_reboot },
	{ "triple", mode_triple },
	{ "hlt", mode_hlt },
	{ "spin", mode_spin },
	{ "fault", mode_fault },
	{ "badop", mode_badop },
	{ "mmioabsent", mode_mmioabsent },
};

void end(u8 status)
{
	outb(PORT_MARK, MARK_END);
	outb(PORT_EXIT, status);
	// A monitor without the exit port: nothing more to do.
	for (;;)
		__asm__ volatile("cli; hlt");
}

void finish(void)
{
	say("demo: done ok=%u fail=%u skip=%u\n", oks, fails, skips);
	end(fails ? 1 : 0);
}

void kmain(u64 start_info);
void kmain(u64 start_info)
{
	const char *wrong = boot_read(start_info), *want, *rest;

	want = boot_option("demo");
	if (!want)
		want = "check";
	rest = after(want, "floor");
	if (rest && (*rest == 0 || *rest == ' ') && !wrong)
		end(0);
	outb(PORT_MARK, MARK_KMAIN);
	idt_init();
	console_init();
	if (wrong) {
		fail("start_info", "%s", wrong);
		finish();
	}
	time_init();
	heap_init();
	lapic_init();
	lax = opt("lax") != NULL;
	for (u32 i = 0; i < COUNT(modes); i++) {
		rest = after(want, modes[i].name);
		if (!rest || (*rest && *rest != ' ' && *rest != ',' && *rest != '='))
			continue;
		outb(PORT_MARK, MARK_MODE);
		modes[i].run(*rest == '=' ? rest + 1 : "");
		finish();
	}
	fail("mode", "unknown: %s", want);
	end(1);
}
