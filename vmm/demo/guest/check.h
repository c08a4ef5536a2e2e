#ifndef CHECK_H
#define CHECK_H
void check_uart(void), check_fwcfg(void), check_devices(void);
void fwcfg_read(unsigned short key, void *buf, unsigned long n);
#endif
