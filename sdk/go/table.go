package handover

import "container/list"

// table is a map that knows the order in which its entries were put in.
type table[K comparable, V any] struct {
	entries map[K]*list.Element
	order   *list.List
}

type tableEntry[K comparable, V any] struct {
	key   K
	value V
}

func newTable[K comparable, V any]() table[K, V] {
	return table[K, V]{map[K]*list.Element{}, list.New()}
}

func (t table[K, V]) len() int { return len(t.entries) }

// put adds an entry under a key that has none.
func (t table[K, V]) put(key K, value V) {
	t.entries[key] = t.order.PushBack(&tableEntry[K, V]{key, value})
}

// set replaces the value of an entry, if there is one, and leaves it in its place.
func (t table[K, V]) set(key K, value V) {
	if element, ok := t.entries[key]; ok {
		element.Value.(*tableEntry[K, V]).value = value
	}
}

func (t table[K, V]) get(key K) (value V, ok bool) {
	element, ok := t.entries[key]
	if ok {
		value = element.Value.(*tableEntry[K, V]).value
	}
	return value, ok
}

// take removes an entry and returns its value.
func (t table[K, V]) take(key K) (value V, ok bool) {
	if value, ok = t.get(key); ok {
		t.order.Remove(t.entries[key])
		delete(t.entries, key)
	}
	return value, ok
}

// fromOldest iterates over the entries, oldest first; the one that it is at may be taken.
func (t table[K, V]) fromOldest(yield func(K, V) bool) {
	for element := t.order.Front(); element != nil; {
		entry := element.Value.(*tableEntry[K, V])
		element = element.Next()
		if !yield(entry.key, entry.value) {
			return
		}
	}
}
