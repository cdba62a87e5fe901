# SPDX-License-Identifier: GPL-2.0-only
# The tiny kernel of the accelerator probe. It enters the way Linux does (Documentation/arch/x86/boot.rst): a
# boot loader jumps to the real-mode code behind the header; that goes to protected mode and, at 1 MiB, to long
# mode with paging. There it does what an emulating hypervisor gets wrong (VEX-coded BMI2 where CPUID promises
# it, SSE2) or too slow (a long loop), says so on the first serial port, and ends QEMU through isa-debug-exit.
#
#     as --32 probe.S -o probe.o && ld -m elf_i386 -Ttext 0 --oformat binary probe.o -o probe.bin

	.equ	SETUP_SECTORS, 1
	.equ	CODE32, 0x100000
	.equ	TABLES, 0x200000
	.equ	SPINS, 100000000

	.text
	.globl	_start
_start:
	.org	0x1f1
	.byte	SETUP_SECTORS
	.org	0x1fe
	.word	0xaa55
	.code16
entry:
	jmp	real
	.org	0x202
	.ascii	"HdrS"
	.word	0x0204			# version of the boot protocol
	.org	0x211
	.byte	1			# loadflags: the protected-mode part is loaded at 1 MiB
	.org	0x214
	.long	CODE32
	.org	0x240
real:
	cli
	cld
	xorl	%eax, %eax
	movw	%cs, %ax
	movw	%ax, %ds
	shll	$4, %eax
	addl	$(gdt - entry), %eax
	movl	%eax, (gdt_pointer + 2 - entry)
	lgdtl	(gdt_pointer - entry)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x08, $CODE32

	.balign	8, 0			# a fill that no assembler chooses
gdt:
	.quad	0
	.quad	0x00cf9a000000ffff	# 0x08: 32-bit code
	.quad	0x00cf92000000ffff	# 0x10: data
	.quad	0x00af9a000000ffff	# 0x18: 64-bit code
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	0

	.org	512 * (1 + SETUP_SECTORS)
	.code32
protected:
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$TABLES, %esp

	movl	$TABLES, %edi		# level 4, level 3, and one level 2 that maps the first GiB one to one
	xorl	%eax, %eax
	movl	$(3 * 1024), %ecx
	rep stosl
	movl	$(TABLES + 0x1003), TABLES
	movl	$(TABLES + 0x2003), TABLES + 0x1000
	movl	$(TABLES + 0x2000), %edi
	movl	$0x83, %eax		# present, writable, 2 MiB
	movl	$512, %ecx
1:	movl	%eax, (%edi)
	addl	$0x200000, %eax
	addl	$8, %edi
	loop	1b

	movl	%cr4, %eax
	orl	$0x620, %eax		# PAE, OSFXSR, OSXMMEXCPT
	movl	%eax, %cr4
	movl	$TABLES, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	# EFER.LME
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	%cr0, %eax
	andl	$~0x0c, %eax		# no EM, no TS
	orl	$0x80000002, %eax	# PG, MP
	movl	%eax, %cr0
	ljmpl	$0x18, $(CODE32 + long - protected)

	.code64
long:
	xorl	%eax, %eax
	cpuid
	cmpl	$7, %eax
	jb	1f
	movl	$7, %eax
	xorl	%ecx, %ecx
	cpuid
	btl	$8, %ebx		# BMI2
	jnc	1f
	movl	$1, %eax
	shlx	%eax, %eax, %eax
	cmpl	$2, %eax
	jne	stop
1:	pcmpeqd	%xmm0, %xmm0
	movdqa	%xmm0, TABLES + 0x8000
	cmpl	$-1, TABLES + 0x800c
	jne	stop
	movl	$SPINS, %ecx
2:	decl	%ecx
	jnz	2b

	leaq	token(%rip), %rsi
	movl	$(token_end - token), %ecx
	movw	$0x3f8, %dx
	rep outsb
	movb	$0, %al
	outb	%al, $0xf4
stop:
	hlt
	jmp	stop
token:
	.ascii	"orchestrate: probe reached\n"
token_end:
	.balign	16, 0
