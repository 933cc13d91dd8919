import unittest

from wordtally import tally, top


class CountTest(unittest.TestCase):
    def test_counts_over_all_texts_without_regard_to_case(self) -> None:
        self.assertEqual(tally(["The sea", "the sky"]), {"the": 2, "sea": 1, "sky": 1})

    def test_the_most_frequent_words_come_first(self) -> None:
        self.assertEqual(top(tally(["b a b c b c"]), 2), [("b", 3), ("c", 2)])

    def test_words_that_occur_equally_often_come_in_alphabetical_order(self) -> None:
        self.assertEqual(top(tally(["pear fig apple fig pear apple"]), 2), [("apple", 2), ("fig", 2)])

    def test_fewer_words_than_asked_for_are_all_of_them(self) -> None:
        self.assertEqual(top(tally(["one"]), 10), [("one", 1)])


if __name__ == "__main__":
    unittest.main()
