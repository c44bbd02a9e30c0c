"""`search.Gallery` against a dictionary of NumPy sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, PartitionSpec

from metricjax.ground.files import DIGEST
from metricjax.metrics import identification
from metricjax.prototypes import add_classes
from metricjax.search import Gallery, top_k
from tests.helpers.damage import spoiled

D = 5


class Dictionary:
    """Sums of w x / ‖x‖ by id, in float64."""

    def __init__(self):
        self.sums = {}

    def enrol(self, embeddings, ids, weights=None):
        weights = np.ones(len(ids)) if weights is None else np.asarray(weights, np.float64)
        for x, person, weight in zip(
            np.asarray(embeddings, np.float64), np.asarray(ids).tolist(), weights, strict=True
        ):
            if person >= 0 and weight > 0:
                length = np.linalg.norm(x)
                self.sums[person] = self.sums.get(person, 0) + weight * (x / length if length else x)

    def remove(self, ids):
        for person in np.asarray(ids).tolist():
            self.sums.pop(person, None)

    def cosines(self, query):
        query = np.asarray(query, np.float64)
        unit = lambda x: x / np.linalg.norm(x) if np.any(x) else x
        return {person: unit(query) @ unit(x) for person, x in self.sums.items()}

    def best(self, query, k):
        return sorted(self.cosines(query).items(), key=lambda item: -item[1])[:k]


def images(rng, n):
    return jnp.asarray(rng.normal(size=(n, D)), jnp.float32)


def ids_of(*ids):
    return jnp.array(ids, jnp.int32)


def people(gallery):
    return sorted(np.asarray(gallery.ids)[np.asarray(gallery.ids) >= 0].tolist())


def assert_same(gallery, wanted, rng, atol=1e-5):
    """The same people, and the same answers to random queries."""
    assert people(gallery) == sorted(wanted.sums)
    queries, k = images(rng, 6), min(3, len(gallery.ids))
    found = gallery.identify(queries, k=k)
    for query, ids, scores in zip(queries, found.ids.tolist(), found.scores.tolist(), strict=True):
        best = wanted.best(query, k)
        missing = k - len(best)
        assert ids == [person for person, _ in best] + missing * [-1]
        np.testing.assert_allclose(scores, [score for _, score in best] + missing * [-np.inf], atol=atol)
    claimed = ids_of(*range(6))
    cosines = [wanted.cosines(query).get(person, -np.inf) for person, query in enumerate(queries)]
    np.testing.assert_allclose(gallery.verify(queries, claimed), cosines, atol=atol)


def assert_identical(gallery, wanted):
    for a, b in zip(jax.tree.leaves(gallery), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_equals_a_dictionary(weighted, rng):
    gallery, wanted = Gallery.empty(10, D), Dictionary()
    for _ in range(8):
        x, ids = images(rng, 7), jnp.asarray(rng.integers(-1, 10, 7), jnp.int32)
        weights = jnp.asarray(rng.choice([0, 0.3, 1, 4], 7), jnp.float32) if weighted else None
        gallery = gallery.enrol(x, ids, weights=weights)
        wanted.enrol(x, ids, weights)
        assert_same(gallery, wanted, rng)
        gone = jnp.asarray(rng.integers(-1, 12, 3), jnp.int32)
        gallery = gallery.remove(gone)
        wanted.remove(gone)
        assert_same(gallery, wanted, rng)


@pytest.mark.slow
def test_later_images_and_their_order_change_nothing(rng):
    x, ids = images(rng, 12), jnp.asarray(rng.integers(0, 4, 12), jnp.int32)
    weights = jnp.asarray(rng.uniform(0.1, 2, 12), jnp.float32)
    at_once = Gallery.empty(4, D).enrol(x, ids, weights=weights)
    in_parts = Gallery.empty(4, D)
    order = rng.permutation(12)
    for part in (order[:1], order[1:5], order[5:]):
        in_parts = in_parts.enrol(x[part], ids[part], weights=weights[part])
    by_id = lambda gallery: gallery.templates[jnp.argsort(gallery.ids)]
    np.testing.assert_allclose(by_id(in_parts), by_id(at_once), atol=1e-6)
    shuffled = Gallery.empty(4, D).enrol(x[order], ids[order], weights=weights[order])
    np.testing.assert_array_equal(shuffled.ids, at_once.ids)


def test_lengths_as_weights_give_the_mean_of_the_embeddings(rng):
    x = images(rng, 4)
    gallery = Gallery.empty(1, D).enrol(x, jnp.zeros(4, jnp.int32), weights=jnp.linalg.norm(x, axis=1))
    mean = np.mean(x, axis=0)
    np.testing.assert_allclose(gallery.templates[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_removed_people_leave_nothing_in_their_places(rng):
    x = images(rng, 3)
    gallery = Gallery.empty(3, D).enrol(x, ids_of(5, 6, 7))
    before = gallery.ids
    gallery = gallery.remove(ids_of(6, 6, 99, -1))
    assert people(gallery) == [5, 7] and not np.any(gallery.sums[1])
    gallery = gallery.enrol(x[:1], ids_of(1))
    assert gallery.ids.tolist() == [5, 1, 7]
    np.testing.assert_allclose(gallery.verify(x[:1], ids_of(1)), [1], atol=1e-6)
    assert before.tolist() == [5, 6, 7]


def test_capacity(rng):
    x = images(rng, 4)
    gallery = Gallery.empty(3, D).enrol(x[:2], ids_of(8, 9))
    with pytest.raises(ValueError, match="ids has 2 new people too many for the 3 places"):
        gallery.enrol(x, ids_of(7, 9, 6, 5))
    assert people(gallery) == [8, 9]
    assert people(gallery.enrol(x, ids_of(5, 8, 9, 5))) == [5, 8, 9]
    enrol = jax.jit(Gallery.enrol)
    full = enrol(gallery, x, ids_of(7, 9, 6, 5))
    assert people(full) == [5, 8, 9] and int(full.overflow) == 2
    np.testing.assert_allclose(full.sums[1], gallery.enrol(x[1:2], ids_of(9)).sums[1], rtol=1e-6)
    assert int(enrol(full, x, ids_of(1, 1, 1, -1)).overflow) == 3
    assert people(full.enrol(x[:1], ids_of(8))) == [5, 8, 9]  # an old overflow is no error


def test_grows(rng):
    x = images(rng, 4)
    gallery = Gallery.empty(2, D).enrol(x[:2], ids_of(3, 4))
    grown = add_classes(gallery, Gallery.empty(4, D)).enrol(x[2:], ids_of(1, 2))
    assert grown.ids.tolist() == [3, 4, 1, 2]
    assert grown.identify(x).ids[:, 0].tolist() == [3, 4, 1, 2]


def test_people_come_and_go_without_compiling(rng):
    traced = []

    @jax.jit
    def step(gallery, x, ids, gone, threshold):
        traced.append(1)
        gallery = gallery.enrol(x, ids).remove(gone)
        return gallery, gallery.identify(x, threshold, k=2), gallery.verify(x, ids)

    gallery, wanted = Gallery.empty(40, D), Dictionary()
    for i in range(5):
        x, ids = images(rng, 4), jnp.asarray(rng.integers(-1, 30, 4), jnp.int32)
        gallery, found, _ = step(gallery, x, ids, ids[:1], 0.1 * i)
        wanted.enrol(x, ids)
        wanted.remove(ids[:1])
        assert np.all((found.ids >= 0) == (found.scores >= jnp.float32(0.1 * i)))
    assert len(traced) == 1
    assert_same(gallery, wanted, rng)


def test_threshold(rng):
    x = jnp.eye(D, dtype=jnp.float32)
    gallery = Gallery.empty(8, D).enrol(x[:2], ids_of(0, 1))
    queries, labels = images(rng, 40), np.arange(40) % 4
    searches = identification(np.asarray(queries), labels, np.asarray(x[:2]), np.array([0, 1]))
    threshold = searches.threshold_at_fpir(0.25)
    found = gallery.identify(queries, threshold)
    strangers = labels > 1
    assert np.sum(found.ids[strangers, 0] >= 0) == 5
    mates = np.asarray(found.ids[~strangers, 0] == labels[~strangers])
    np.testing.assert_allclose(1 - np.mean(mates), searches.fnir_at_fpir(0.25))
    np.testing.assert_array_equal(found.scores, gallery.identify(queries).scores)


def test_bfloat16(rng):
    x, ids = images(rng, 30).astype(jnp.bfloat16), jnp.zeros(30, jnp.int32)
    gallery, wanted = Gallery.empty(2, D, jnp.bfloat16), Dictionary()
    for part in range(0, 30, 10):
        gallery = gallery.enrol(x[part : part + 10], ids[part : part + 10], weights=jnp.ones(10, jnp.bfloat16))
    wanted.enrol(x, ids)
    assert gallery.sums.dtype == jnp.float32
    np.testing.assert_allclose(gallery.sums[0], wanted.sums[0], atol=1e-4)
    np.testing.assert_allclose(gallery.verify(x[:2], ids[:2]), [wanted.cosines(q)[0] for q in x[:2]], atol=1e-5)
    assert gallery.identify(x[:2]).scores.dtype == jnp.float32


def test_float64(x64, rng):
    x, ids = jnp.asarray(rng.normal(size=(6, D))), jnp.asarray(rng.integers(0, 3, 6))
    gallery, wanted = Gallery.empty(3, D, jnp.float64).enrol(x, ids), Dictionary()
    wanted.enrol(x, ids)
    np.testing.assert_allclose(gallery.sums, [wanted.sums[i] for i in gallery.ids.tolist()], atol=1e-14)
    mixed = Gallery.empty(3, D).enrol(x, ids)
    assert mixed.sums.dtype == jnp.float32
    np.testing.assert_allclose(mixed.verify(x, ids), gallery.verify(x, ids), atol=1e-6)
    assert mixed.verify(x, jnp.full(6, 2**32)).tolist() == 6 * [-np.inf]


@pytest.mark.usefixtures("debug_nans")
def test_degenerate_images_are_finite():
    x = jnp.array([[1, 0], [-1, 0], [0, 0], [3, 4], [1e30, 1e30], [1e-30, 0]], jnp.float32)
    gallery = Gallery.empty(8, 2).enrol(x, ids_of(0, 0, 1, 2, 3, 4), weights=jnp.array([1.0, 1, 1, 0, 1, 1]))
    assert people(gallery) == [0, 1, 3, 4]  # weight 0 does not enrol
    root = 0.5**0.5
    np.testing.assert_allclose(gallery.templates[:4], [[0, 0], [0, 0], [root, root], [1, 0]], atol=1e-6)
    query = jnp.array([[1.0, 0.0]])
    assert gallery.identify(query, k=4).ids.tolist() == [[4, 3, 0, 1]]
    assert gallery.verify(query, ids_of(0)).tolist() == [0]
    nobody = Gallery.empty(3, 2).enrol(x, ids_of(*6 * [-1])).enrol(x[:0], ids_of()).remove(ids_of())
    found = nobody.identify(query, 0.5, k=2)
    assert found.ids.tolist() == [[-1, -1]] and found.scores.tolist() == [[-np.inf, -np.inf]]
    assert nobody.verify(query, ids_of(-1)).tolist() == [-np.inf]


def test_broken_images_do_not_reach_a_template():
    good = jnp.array([[0.0, 1.0]])
    broken = jnp.array([[jnp.nan, 1], [jnp.inf, 0], [1, 0], [1, 0], [1, 0]])
    weights = jnp.array([1, 1, jnp.nan, jnp.inf, -1])
    before = Gallery.empty(3, 2).enrol(good, ids_of(0))
    gallery = before.enrol(broken, ids_of(0, 1, 0, 2, 0), weights=weights)
    assert_identical(gallery, before)
    assert gallery.verify(broken[:2], ids_of(0, 0)).tolist() == [-np.inf, -np.inf]
    assert gallery.identify(broken[:2]).ids.tolist() == [[-1], [-1]]


def test_save_and_load(rng, tmp_path):
    gallery = Gallery.empty(4, D).enrol(images(rng, 3), ids_of(2, 0, 2))
    gallery.save(tmp_path / "people")
    loaded = Gallery.load(tmp_path / "people")
    assert jax.tree.structure(loaded) == jax.tree.structure(gallery)
    assert_identical(loaded, gallery)
    np.savez(tmp_path / "other.npz", ids=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds \['ids'\]; wanted a gallery"):
        Gallery.load(tmp_path / "other.npz")
    np.savez(tmp_path / "shapes.npz", sums=np.zeros((4, 3)), ids=np.zeros(3, np.int32), overflow=np.int32(0))
    with pytest.raises(ValueError, match=r"holds ids int32\[3\], .*sums float64\[4, 3\]; wanted ids int32\[c\]"):
        Gallery.load(tmp_path / "shapes.npz")
    (tmp_path / "text").write_text("nobody")
    with pytest.raises(ValueError, match="text is not an npz file"):
        Gallery.load(tmp_path / "text")


def saved(gallery, path):
    gallery.save(path)
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files if name != DIGEST}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sums": np.full((4, D), np.nan, np.float32)}, "holds sums that are not finite"),
        ({"sums": np.full((4, D), 1e300)}, "holds sums that are not finite"),
        ({"sums": np.ones((4, D), np.float32)}, "holds sums in free places"),
        ({"sums": np.zeros((4, D), np.float16)}, r"holds .*sums float16\[4, 5\]; wanted"),
        ({"sums": np.zeros((4, 0), np.float32)}, r"sums float32\[4, 0\]; wanted"),
        ({"sums": np.zeros((4, D), object)}, "holds Python objects"),
        ({"sums": np.zeros((4, D), np.complex64)}, "sums complex64"),
        ({"ids": np.array([0, 2, 2, -1], np.int32)}, "holds one id twice"),
        ({"ids": np.array([0, 2, -2, -1], np.int32)}, "holds ids that nobody can have"),
        ({"ids": np.array([0, 2, 2**31 - 1, -1], np.int32)}, "holds ids that nobody can have"),
        ({"ids": np.array([0, 2, -1, -1])}, r"ids int64\[4\]"),
        ({"overflow": np.array(-1, np.int32)}, "holds a negative overflow"),
        ({"overflow": np.zeros(1, np.int32)}, r"overflow int32\[1\]"),
        ({"names": np.array(["Ada"])}, r"holds \['ids', 'names', 'overflow', 'sums'\]; wanted a gallery"),
    ],
)
def test_what_is_no_gallery_is_refused_by_name(change, message, rng, tmp_path):
    held = saved(Gallery.empty(4, D).enrol(images(rng, 3), ids_of(2, 0, 2)), tmp_path / "people.npz")
    np.savez(tmp_path / "people.npz", **(held | change))
    with pytest.raises(ValueError, match=rf"people\.npz .*{message}"):
        Gallery.load(tmp_path / "people.npz")


def test_only_what_can_be_loaded_is_saved(rng, tmp_path):
    path, x, largest = tmp_path / "people.npz", jnp.ones((9, D)), jnp.full(9, 3e38, jnp.float32)
    gallery = Gallery.empty(4, D).enrol(images(rng, 1), ids_of(2))
    held = saved(gallery, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="holds sums that are not finite"):
        gallery.enrol(x, ids_of(*[2] * 9), weights=largest).save(str(path))
    assert path.read_bytes() == before
    np.savez(path, **held)  # as it was before there was a digest
    assert_identical(Gallery.load(path), gallery)


def test_damaged_files_are_refused_by_name(fuzz, rng, tmp_path):
    """Or they are the gallery that was saved; arrays of another are refused, or work."""
    gallery, path = Gallery.empty(4, D).enrol(images(rng, 3), ids_of(2, 0, 2)), tmp_path / "people.npz"
    held, refused = saved(gallery, path), 0
    for is_damaged in spoiled(path, held, fuzz):
        try:
            found = Gallery.load(path)
        except ValueError as error:
            assert "people.npz " in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert np.all(np.isfinite(found.sums))
            if is_damaged:
                assert_identical(found, gallery)
    assert refused > len(fuzz) / 2


@pytest.mark.parametrize("few", (True, False))
def test_one_pair_sorts_no_gallery(few, rng):
    """Nothing in the programs is sorted but the ids that are asked for, whose places are the same either way."""
    n = 3 if few else 50
    gallery, x, ids = Gallery.empty(1000, D), images(rng, n), jnp.asarray(rng.permutation(n) - 1, jnp.int32)
    for method in (lambda: gallery.verify(x, ids), lambda: gallery.enrol(x, ids), lambda: gallery.remove(ids)):
        sorts = [e for e in equations(jax.make_jaxpr(method)().jaxpr) if e.primitive.name == "sort"]
        assert few or sorts
        assert all(max(v.aval.shape) <= n + 1 for e in sorts for v in e.invars)
    gallery = gallery.enrol(x, ids).remove(ids_of(1))
    enrolled = (ids >= 0) & (ids != 1)
    np.testing.assert_allclose(gallery.verify(x, ids), jnp.where(enrolled, 1, -jnp.inf), atol=1e-6)
    assert people(gallery.remove(ids)) == []


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda g, x: Gallery.empty(0, 2), ValueError, "capacity is 0"),
        (lambda g, x: Gallery.empty(2.5, 2), ValueError, "capacity is 2.5"),
        (lambda g, x: Gallery.empty(2, 2, int), TypeError, "wanted a floating-point dtype"),
        (lambda g, x: g.enrol(x, np.array(["a", "b"])), TypeError, "ids has dtype <U1; wanted integers"),
        (lambda g, x: g.enrol(x, np.array([True, False])), TypeError, "ids has dtype bool; wanted integers"),
        (lambda g, x: g.identify(x, np.zeros(2)), ValueError, r"threshold has shape \(2,\); wanted one number"),
        (lambda g, x: g.enrol(x[:, :1], ids_of(0, 1)), ValueError, "embeddings has 1 features, the gallery 2"),
        (lambda g, x: g.enrol(x, ids_of(0)), ValueError, "ids has shape"),
        (lambda g, x: g.enrol(x, [0, 1]), TypeError, "ids is a list"),
        (lambda g, x: g.enrol(x, jnp.zeros((2, 1), jnp.int32)), ValueError, "wanted one id for each"),
        (lambda g, x: g.enrol(x, x[0]), TypeError, "ids has dtype float32"),
        (lambda g, x: g.enrol(x, ids_of(0, 1), weights=x), ValueError, "weights has shape"),
        (lambda g, x: g.enrol(x, ids_of(0, 1), weights=ids_of(1, 1)), TypeError, "weights has dtype int32"),
        (lambda g, x: g.enrol(x, np.array([0, 2**32 + 1])), ValueError, "ids go from 0 to 4294967297"),
        (lambda g, x: g.remove(jnp.int32(3)), ValueError, "ids has shape"),
        (lambda g, x: g.remove(jnp.zeros((2, 2), jnp.int32)), ValueError, "ids has shape"),
        (lambda g, x: g.verify(x[:1], ids_of(0, 1)), ValueError, "ids has shape"),
        (lambda g, x: g.verify(x[:, :1], ids_of(0, 1)), ValueError, "queries has 1 features"),
        (lambda g, x: g.identify(x[0]), ValueError, "queries has shape"),
        (lambda g, x: g.identify(x, k=4), ValueError, "k is 4; wanted 1 to 3"),
    ],
)
def test_errors(unchecked, call, error, message):
    with pytest.raises(error, match=message):
        call(Gallery.empty(3, 2), jnp.ones((2, 2)))


def test_numpy_ids(unchecked, rng):
    x = np.asarray(images(rng, 2))
    gallery = Gallery.empty(2, D).enrol(x, np.array([7, 3]))
    assert gallery.ids.tolist() == [3, 7]
    assert people(gallery.remove(np.array([7]))) == [3]


@pytest.mark.slow
def test_a_gallery_that_is_split_over_devices(rng):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")
    x, ids = jnp.asarray(rng.standard_normal((20, D)), jnp.float32), jnp.arange(20, dtype=jnp.int32)
    gallery = Gallery.empty(24, D).enrol(x, ids).remove(ids[3:5])
    find = lambda queries, sums, ids: top_k(queries, sums, 3, where=ids >= 0, axis_name="data")
    found = jax.jit(jax.shard_map(find, mesh=mesh, in_specs=split, out_specs=split))(x[:16], gallery.sums, gallery.ids)
    expected = gallery.identify(x[:16], k=3)
    np.testing.assert_array_equal(gallery.ids[found.indices], expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
