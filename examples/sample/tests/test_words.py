import unittest

from wordtally import words


class WordsTest(unittest.TestCase):
    def test_punctuation_does_not_belong_to_words(self) -> None:
        self.assertEqual(list(words("Wait: what?  (Yes.)")), ["wait", "what", "yes"])

    def test_apostrophes_and_hyphens_inside_a_word_belong_to_it(self) -> None:
        self.assertEqual(list(words("a 'well-known' don't -")), ["a", "well-known", "don't"])

    def test_letters_of_every_script_make_words(self) -> None:
        self.assertEqual(list(words("Größe, naïve, 東京")), ["größe", "naïve", "東京"])


if __name__ == "__main__":
    unittest.main()
