// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes the kernel report a defect of a chosen kind. Writing a name to
 * /sys/kernel/debug/provoke runs the function of that name.
 *
 * Each defect sits in a function of its own that is not inlined: its name is
 * what a reader of the report is to be told.
 */

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/hardirq.h>
#include <linux/kasan-checks.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/page_ref.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>

static void *volatile sink;
static volatile long zero;
static volatile long many = 64;

#define PROVOKE static noinline __noclone void

/* KASAN */

PROVOKE provoke_kasan_write(void)
{
	char *object = kmalloc(64, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(object);
	object[many + 3] = 1;
	kfree(object);
}

PROVOKE provoke_kasan_memcpy(void)
{
	char *object = kmalloc(64, GFP_KERNEL);
	static char source[128];

	OPTIMIZER_HIDE_VAR(object);
	memcpy(object, source, many + 8);
	kfree(object);
}

PROVOKE provoke_kasan_freed(void)
{
	int *object = kmalloc(64, GFP_KERNEL);

	kfree(object);
	OPTIMIZER_HIDE_VAR(object);
	zero = READ_ONCE(object[2]) & 0;
}

PROVOKE provoke_kasan_double_free(void)
{
	void *object = kmalloc(64, GFP_KERNEL);

	kfree(object);
	OPTIMIZER_HIDE_VAR(object);
	kfree(object);
}

PROVOKE provoke_kasan_stack(void)
{
	char array[32] = {};

	sink = array;
	OPTIMIZER_HIDE_VAR(sink);
	zero = READ_ONCE(((char *)sink)[many / 2 + 2]) & 0;
}

PROVOKE provoke_kasan_global(void)
{
	static char array[32];
	char *pointer = array;

	OPTIMIZER_HIDE_VAR(pointer);
	zero = READ_ONCE(pointer[many / 2 + 2]) & 0;
}

PROVOKE provoke_kasan_user(void)
{
	int *pointer = (int *)0x1000;

	OPTIMIZER_HIDE_VAR(pointer);
	kasan_check_write(pointer, 4);
}

PROVOKE provoke_kasan_page(void)
{
	struct page *page = alloc_page(GFP_KERNEL);
	int *pointer = page_address(page);

	__free_page(page);
	OPTIMIZER_HIDE_VAR(pointer);
	zero = READ_ONCE(pointer[3]) & 0;
}

/* Several reports of one boot: kasan_multi_shot. */
PROVOKE provoke_kasan_three(void)
{
	provoke_kasan_write();
	provoke_kasan_freed();
	provoke_kasan_memcpy();
}

/* lockdep */

static DEFINE_MUTEX(lock_a);
static DEFINE_MUTEX(lock_b);
static DEFINE_MUTEX(lock_c);
static DEFINE_SPINLOCK(spin_a);
static DEFINE_SPINLOCK(spin_b);
static DEFINE_RAW_SPINLOCK(raw_a);

PROVOKE lock_a_then_b(void)
{
	mutex_lock(&lock_a);
	mutex_lock(&lock_b);
	mutex_unlock(&lock_b);
	mutex_unlock(&lock_a);
}

PROVOKE provoke_lock_cycle(void)
{
	lock_a_then_b();
	mutex_lock(&lock_b);
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
	mutex_unlock(&lock_b);
}

PROVOKE provoke_lock_cycle_mmap(void)
{
	mmap_read_lock(current->mm);
	mutex_lock(&lock_c);
	mutex_unlock(&lock_c);
	mmap_read_unlock(current->mm);
	mutex_lock(&lock_c);
	mmap_read_lock(current->mm);
	mmap_read_unlock(current->mm);
	mutex_unlock(&lock_c);
}

PROVOKE provoke_lock_twice(void)
{
	struct pair {
		spinlock_t one, two;
	} *pair = kzalloc(sizeof(*pair), GFP_KERNEL);
	int i;

	for (i = 0; i < 2; i++) {
		spinlock_t *lock = i ? &pair->two : &pair->one;

		spin_lock_init(lock);
	}
	spin_lock(&pair->one);
	spin_lock(&pair->two);
	spin_unlock(&pair->two);
	spin_unlock(&pair->one);
	kfree(pair);
}

static void take_spin_a(struct timer_list *unused)
{
	spin_lock(&spin_a);
	spin_unlock(&spin_a);
}

static DEFINE_TIMER(spin_timer, take_spin_a);

PROVOKE provoke_lock_softirq(void)
{
	mod_timer(&spin_timer, jiffies + 1);
	msleep(50);
	spin_lock(&spin_a);
	spin_unlock(&spin_a);
}

PROVOKE provoke_lock_unsafe_order(void)
{
	mod_timer(&spin_timer, jiffies + 1);
	msleep(50);
	spin_lock(&spin_b);
	spin_unlock(&spin_b);
	spin_lock_bh(&spin_a);
	spin_lock(&spin_b);
	spin_unlock(&spin_b);
	spin_unlock_bh(&spin_a);
}

PROVOKE provoke_lock_wait_context(void)
{
	raw_spin_lock(&raw_a);
	spin_lock(&spin_b);
	spin_unlock(&spin_b);
	raw_spin_unlock(&raw_a);
}

PROVOKE provoke_lock_unbalanced(void)
{
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
	rwsem_release(&lock_b.dep_map, _RET_IP_);
}

PROVOKE provoke_lock_freed(void)
{
	struct mutex *lock = kmalloc(sizeof(*lock), GFP_KERNEL);

	mutex_init(lock);
	mutex_lock(lock);
	kfree(lock);
}

PROVOKE provoke_lock_kept(void)
{
	mutex_lock(&lock_a);
}

PROVOKE provoke_lock_no_key(void)
{
	struct mutex lock;

	memset(&lock, 0, sizeof(lock));
	raw_spin_lock_init(&lock.wait_lock);
	INIT_LIST_HEAD(&lock.wait_list);
	lockdep_init_map(&lock.dep_map, "on_stack", (void *)&lock, 0);
	mutex_lock(&lock);
	mutex_unlock(&lock);
}

PROVOKE provoke_rcu_suspicious(void)
{
	static int __rcu *pointer;

	sink = (void *)rcu_dereference(pointer);
}

PROVOKE provoke_spin_magic(void)
{
	spinlock_t lock;

	memset(&lock, 0, sizeof(lock));
	spin_lock(&lock);
}

PROVOKE provoke_sleep_in_atomic(void)
{
	spin_lock(&spin_b);
	might_sleep();
	spin_unlock(&spin_b);
}

PROVOKE provoke_schedule_in_atomic(void)
{
	preempt_disable();
	schedule_timeout_uninterruptible(1);
	preempt_enable();
}

static void leak_lock(struct work_struct *unused)
{
	rcu_read_lock();
}

PROVOKE provoke_work_leaks(void)
{
	static DECLARE_WORK(work, leak_lock);

	schedule_work(&work);
	flush_work(&work);
}

/* Warnings, assertions, sanitizers */

PROVOKE provoke_warn(void)
{
	WARN_ON(many == 64);
}

PROVOKE provoke_warn_text(void)
{
	WARN(1, "provoked: %ld is many\n", many);
}

PROVOKE provoke_warn_moved(void)
{
	int a, b;

	a = zero;
	b = many;
	WARN_ON(a != b);
}

PROVOKE provoke_bug(void)
{
	BUG_ON(many == 64);
}

PROVOKE provoke_bug_header(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	__free_page(page);
	get_page(page);
}

PROVOKE provoke_warn_page(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	VM_WARN_ON_ONCE_PAGE(!zero, page);
	__free_page(page);
}

PROVOKE provoke_refcount_zero(void)
{
	static refcount_t count = REFCOUNT_INIT(0);

	refcount_inc(&count);
}

PROVOKE provoke_refcount_below(void)
{
	static refcount_t count = REFCOUNT_INIT(0);

	sink = (void *)(long)refcount_sub_and_test(1, &count);
}

PROVOKE provoke_list_added_twice(void)
{
	static LIST_HEAD(head);
	static struct list_head entry;

	list_add(&entry, &head);
	list_add(&entry, &head);
}

PROVOKE provoke_list_deleted_twice(void)
{
	static LIST_HEAD(head);
	static struct list_head entry;

	list_add(&entry, &head);
	list_del(&entry);
	list_del(&entry);
}

PROVOKE provoke_ubsan_bounds(void)
{
	static struct {
		int array[4];
		int after[64];
	} object;

	object.array[many / 8] = 1;
	sink = &object;
}

PROVOKE provoke_ubsan_shift(void)
{
	zero = (1L << (many + 6)) & 0;
}

PROVOKE provoke_ubsan_bool(void)
{
	static char value = 7;
	bool *pointer = (bool *)&value;

	OPTIMIZER_HIDE_VAR(pointer);
	if (*pointer)
		zero = 0;
}

PROVOKE provoke_object_freed_active(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	timer_setup(timer, take_spin_a, 0);
	mod_timer(timer, jiffies + 1000 * HZ);
	kfree(timer);
}

PROVOKE provoke_usercopy(void)
{
	char *object = kmalloc(64, GFP_KERNEL);
	unsigned long length = many + 16;

	OPTIMIZER_HIDE_VAR(object);
	if (copy_to_user((void __user *)current->mm->arg_start, object, length))
		zero = 0;
	kfree(object);
}

/* Faults */

PROVOKE provoke_fault_null(void)
{
	int *pointer = (int *)zero;

	pointer[2] = 1;
}

PROVOKE provoke_fault_page(void)
{
	*(volatile int *)0xffff87ffdeadb000 = 1;
}

PROVOKE provoke_fault_gpf(void)
{
	unsigned long address = 0xdead000000000100;

	OPTIMIZER_HIDE_VAR(address);
	asm volatile("movl $1, (%0)" : : "r"(address) : "memory");
}

PROVOKE provoke_fault_divide(void)
{
	zero = many / zero;
}

PROVOKE provoke_fault_opcode(void)
{
	asm volatile("ud2");
}

PROVOKE provoke_fault_jump(void)
{
	void (*function)(void) = (void *)zero;

	OPTIMIZER_HIDE_VAR(function);
	function();
}

PROVOKE provoke_fault_memset(void)
{
	void *pointer = (void *)0xffff87ffdeadb000;

	OPTIMIZER_HIDE_VAR(pointer);
	__memset(pointer, 0, many);
}

PROVOKE provoke_recurse(void)
{
	volatile char frame[512];

	frame[0] = zero;
	sink = (void *)frame;
	provoke_recurse();
	frame[1] = zero;
}

static void oops_in_timer(struct timer_list *unused)
{
	provoke_fault_null();
}

static DEFINE_TIMER(oops_timer, oops_in_timer);

PROVOKE provoke_fault_interrupt(void)
{
	mod_timer(&oops_timer, jiffies + 1);
	msleep(1000);
}

PROVOKE provoke_just_panic(void)
{
	panic("provoked: %ld", many);
}

PROVOKE provoke_stack_end(void)
{
	*end_of_stack(current) = 0;
	msleep(10);
}

/* Memory management */

PROVOKE provoke_bad_page_mapping(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	page->mapping = (void *)0x1000;
	__free_page(page);
}

PROVOKE provoke_bad_page_refcount(void)
{
	struct page *page = alloc_pages(GFP_KERNEL, 0);

	set_page_count(page, 1);
	atomic_set(&page->_mapcount, 3);
	__free_page(page);
}

PROVOKE provoke_page_poison(void)
{
	struct page *page = alloc_pages(GFP_KERNEL, 3);
	char *pointer = page_address(page);

	__free_pages(page, 3);
	OPTIMIZER_HIDE_VAR(pointer);
	/* Not instrumented, or KASAN would be first. */
	asm volatile("movb $0x11, (%0)" : : "r"(pointer) : "memory");
	page = alloc_pages(GFP_KERNEL, 3);
	__free_pages(page, 3);
}

PROVOKE provoke_bad_rss(void)
{
	add_mm_counter(current->mm, MM_ANONPAGES, 5);
}

PROVOKE provoke_bad_pmd(void)
{
	static pmd_t pmd;

	pmd = __pmd(0x8000000000000062);
	pmd_clear_bad(&pmd);
}

PROVOKE provoke_vmstat_negative(void)
{
	mod_node_page_state(NODE_DATA(0), NR_ISOLATED_ANON, -300);
}

PROVOKE provoke_slub_right(void)
{
	char *object = kmalloc(64, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(object);
	asm volatile("movb $1, 66(%0)" : : "r"(object) : "memory");
	kfree(object);
}

PROVOKE provoke_slub_poison(void)
{
	char *object = kmalloc(64, GFP_KERNEL);
	int i;

	kfree(object);
	asm volatile("movb $1, 16(%0)" : : "r"(object) : "memory");
	for (i = 0; i < 4096; i++)
		sink = kmalloc(64, GFP_KERNEL);
}

PROVOKE provoke_slub_remaining(void)
{
	struct kmem_cache *cache = kmem_cache_create("provoked", 40, 0, SLAB_NO_MERGE, NULL);

	sink = kmem_cache_alloc(cache, GFP_KERNEL);
	kmem_cache_destroy(cache);
}

PROVOKE provoke_leak(void)
{
	int i;

	for (i = 0; i < 16; i++) {
		void *volatile object = kmalloc(72, GFP_KERNEL);

		object = NULL;
	}
}

/* Time passes */

PROVOKE provoke_hang(void)
{
	mutex_lock(&lock_c);
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule_timeout(60 * HZ);
	mutex_unlock(&lock_c);
}

PROVOKE provoke_spin_long(void)
{
	unsigned long end = jiffies + 45 * HZ;

	preempt_disable();
	while (time_before(jiffies, end))
		cpu_relax();
	preempt_enable();
}

PROVOKE provoke_spin_in_rcu(void)
{
	unsigned long end = jiffies + 45 * HZ;

	rcu_read_lock();
	while (time_before(jiffies, end))
		cpu_relax();
	rcu_read_unlock();
}

static void spin_work(struct work_struct *unused)
{
	provoke_spin_long();
}

PROVOKE provoke_work_stuck(void)
{
	static DECLARE_WORK(work, spin_work);

	schedule_work_on(1, &work);
	msleep(60000);
}

/* Two CPUs at once */

static atomic_t together;

PROVOKE warn_left(void)
{
	WARN(1, "left\n");
}

PROVOKE warn_right(void)
{
	WARN(1, "right\n");
}

static int warn_thread(void *right)
{
	int i;

	for (i = 0; i < 6; i++) {
		atomic_inc(&together);
		while (atomic_read(&together) < 2 * (i + 1))
			cpu_relax();
		if (right)
			warn_right();
		else
			warn_left();
	}
	return 0;
}

PROVOKE provoke_two_cpus(void)
{
	struct task_struct *left, *right;

	left = kthread_create_on_cpu(warn_thread, NULL, 0, "left/%u");
	right = kthread_create_on_cpu(warn_thread, (void *)1, 1, "right/%u");
	wake_up_process(left);
	wake_up_process(right);
	msleep(8000);
}

#define NAMED(defect) { #defect, provoke_##defect }

static const struct {
	const char *name;
	void (*run)(void);
} defects[] = {
	NAMED(kasan_write),
	NAMED(kasan_memcpy),
	NAMED(kasan_freed),
	NAMED(kasan_double_free),
	NAMED(kasan_stack),
	NAMED(kasan_global),
	NAMED(kasan_user),
	NAMED(kasan_page),
	NAMED(kasan_three),
	NAMED(lock_cycle),
	NAMED(lock_cycle_mmap),
	NAMED(lock_twice),
	NAMED(lock_softirq),
	NAMED(lock_unsafe_order),
	NAMED(lock_wait_context),
	NAMED(lock_unbalanced),
	NAMED(lock_freed),
	NAMED(lock_kept),
	NAMED(lock_no_key),
	NAMED(rcu_suspicious),
	NAMED(spin_magic),
	NAMED(sleep_in_atomic),
	NAMED(schedule_in_atomic),
	NAMED(work_leaks),
	NAMED(warn),
	NAMED(warn_text),
	NAMED(warn_moved),
	NAMED(bug),
	NAMED(bug_header),
	NAMED(warn_page),
	NAMED(refcount_zero),
	NAMED(refcount_below),
	NAMED(list_added_twice),
	NAMED(list_deleted_twice),
	NAMED(ubsan_bounds),
	NAMED(ubsan_shift),
	NAMED(ubsan_bool),
	NAMED(object_freed_active),
	NAMED(usercopy),
	NAMED(fault_null),
	NAMED(fault_page),
	NAMED(fault_gpf),
	NAMED(fault_divide),
	NAMED(fault_opcode),
	NAMED(fault_jump),
	NAMED(fault_memset),
	NAMED(recurse),
	NAMED(fault_interrupt),
	NAMED(just_panic),
	NAMED(stack_end),
	NAMED(bad_page_mapping),
	NAMED(bad_page_refcount),
	NAMED(page_poison),
	NAMED(bad_rss),
	NAMED(bad_pmd),
	NAMED(vmstat_negative),
	NAMED(slub_right),
	NAMED(slub_poison),
	NAMED(slub_remaining),
	NAMED(leak),
	NAMED(hang),
	NAMED(spin_long),
	NAMED(spin_in_rcu),
	NAMED(work_stuck),
	NAMED(two_cpus),
};

static ssize_t provoke_file_write(struct file *file, const char __user *buffer, size_t size,
				  loff_t *position)
{
	char name[64] = {};
	int i;

	if (size >= sizeof(name) || copy_from_user(name, buffer, size))
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(defects); i++) {
		if (!strcmp(strim(name), defects[i].name)) {
			defects[i].run();
			return size;
		}
	}
	return -ENOENT;
}

static const struct file_operations provoke_operations = {
	.write = provoke_file_write,
};

static int __init provoke_init(void)
{
	debugfs_create_file("provoke", 0200, NULL, NULL, &provoke_operations);
	return 0;
}
late_initcall(provoke_init);
