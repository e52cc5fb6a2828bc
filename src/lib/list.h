/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intrusive doubly linked list: a circular list whose head is a node of its
 * own. The element embeds `struct list`; list_entry() gets back to it.
 * Not synchronised. fork: plain memory.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct list {
	struct list *next, *prev;
};

#define LIST_INIT(name) ((struct list){&(name), &(name)})

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_insert_between(struct list *n, struct list *prev, struct list *next)
{
	n->prev = prev;
	n->next = next;
	prev->next = n;
	next->prev = n;
}

static inline void list_add_tail(struct list *head, struct list *n)
{
	list_insert_between(n, head->prev, head);
}

static inline void list_add_head(struct list *head, struct list *n)
{
	list_insert_between(n, head, head->next);
}

/* Unlinks n and makes it an empty list, so that deleting twice is harmless. */
static inline void list_del(struct list *n)
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	list_init(n);
}

#define list_entry(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* `type *it` walks the list; it must not be removed inside the loop. */
#define list_for_each(it, head, type, member)                                          \
	for (type *it = list_entry((head)->next, type, member); &it->member != (head); \
	     it = list_entry(it->member.next, type, member))

/* The same, and `it` may be removed (and freed) inside the loop. */
#define list_for_each_safe(it, head, type, member)                        \
	for (type *it = list_entry((head)->next, type, member),           \
		  *it##_next = list_entry(it->member.next, type, member); \
	     &it->member != (head);                                       \
	     it = it##_next, it##_next = list_entry(it->member.next, type, member))
